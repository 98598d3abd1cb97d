"""The models of a run, ready to predict: a trial's, or its ensemble's.

In: a run folder. Out: a `Predictor`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ichsearch.data.preprocessing import Preprocessing, preprocessing_of
from ichsearch.deploy.ensemble_record import read_ensemble
from ichsearch.deploy.pipeline import Member, Pipeline
from ichsearch.errors import ConfigError, DataError, NoTrialFinishedError
from ichsearch.files import read_json, sha256_of
from ichsearch.report.report import shards_of
from ichsearch.search.confirmed import best_trials
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import load_space
from ichsearch.train.config import TrialConfig
from ichsearch.train.lineage import PREDICTIONS, WEIGHTS, recorded_sha256
from ichsearch.train.memory import MicroBatch
from ichsearch.train.metrics import FloatArray
from ichsearch.train.setup import make_model, pick_device
from ichsearch.train.steps import Arithmetic, arithmetic
from ichsearch.train.trial import read_result

BATCH: Final = 64
Images = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Predictor:
    """What a run has learned.

    Attributes:
        labels: the L labels' names, in order.
        trials: whose weights these are.
        weights: of each in the mean.
        flip: whether each image is averaged with its mirror image.
        preprocessing: how slices must be made of DICOM files.
        configs: what each of them was trained as.
        validation: the file of its predictions of the validation slices; thresholds come from there.
        pipeline: HU to probabilities.
        device: where it works.
        micro: how many slices go through it at once.
    """

    labels: tuple[str, ...]
    trials: tuple[str, ...]
    weights: tuple[float, ...]
    flip: bool
    preprocessing: Preprocessing
    configs: tuple[TrialConfig, ...]
    validation: Path
    pipeline: Pipeline
    device: torch.device
    micro: MicroBatch = field(default_factory=lambda: MicroBatch(BATCH))

    @property
    def needs_neighbours(self) -> bool:
        """Whether a slice is looked at together with the one below and the one above."""
        return self.pipeline.depth > 1

    @torch.inference_mode()
    def predict(self, pixels_hu: Images, neighbours: npt.NDArray[np.int64] | None = None) -> FloatArray:
        """Probabilities (N, L) of (N, S, S) int16 HU at the stored size.

        Args:
            pixels_hu: slices as shards hold them: cropped, `preprocessing.size` pixels a side.
            neighbours: (N, 3) places in `pixels_hu` of the slice below each, the slice, the slice above; a series'
                ends repeat. None: these are the slices of one series, from foot to head.
        """
        rows = neighbours if neighbours is not None else series_neighbours(len(pixels_hu))
        rows = rows if self.needs_neighbours else rows[:, 1:2]
        parts = [self._batch(pixels_hu[rows[start : start + BATCH]]) for start in range(0, len(rows), BATCH)]
        return np.concatenate([np.empty((0, len(self.labels)), np.float32), *parts])

    def _batch(self, hu: Images) -> FloatArray:
        images = torch.from_numpy(hu).to(self.device)

        def work(size: int) -> Tensor:
            return torch.cat([self.pipeline(images[start : start + size]) for start in range(0, len(images), size)])

        probabilities: FloatArray = self.micro.run(work).cpu().numpy()
        return probabilities


def series_neighbours(slices: int) -> npt.NDArray[np.int64]:
    """(N, 3) places of the slice below, the slice and the slice above in a series of N; its ends repeat."""
    places: npt.NDArray[np.int64] = np.arange(slices)[:, None] + np.array([-1, 0, 1])
    return places.clip(0, max(slices - 1, 0))


def load_predictor(
    folder: RunFolder,
    trial: str | None,
    *,
    ensemble: bool,
    shards: Path | None = None,
    device: torch.device | None = None,
    exact: bool = False,
) -> Predictor:
    """The predictor of one trial of a run (None: the best one), or of its ensemble.

    Args:
        folder: the run's.
        trial: its id.
        ensemble: what `ichsearch ensemble` has chosen instead.
        shards: the run's data; needed only where the run folder does not tell how they were preprocessed.
        device: None takes the GPU if there is one.
        exact: in float32, whatever the models were validated in.

    Raises:
        ConfigError: the trial or the ensemble is not there, or its weights were not kept.
        DataError: weights or validation predictions are not those that were written.
        NoTrialFinishedError: the run has no result yet.
    """
    if ensemble and trial is not None:
        raise ConfigError(f"--ensemble takes the ensemble's own trials, but --trial {trial} is given; leave one out")
    if ensemble:
        chosen = read_ensemble(folder)
        trials = [member.trial for member in chosen.members]
        weights, flip, validation = [m.weight for m in chosen.members], chosen.flip, folder.ensemble_predictions
        _require_as_written(validation, chosen.predictions_sha256)
    else:
        trials, weights, flip = [trial or best_trial(folder)], [1.0], False
        config_of(folder, trials[0])
        validation = validation_of(folder, trials[0])
    return predictor_of(
        folder, trials, weights, flip=flip, validation=validation, shards=shards, device=device, exact=exact
    )


def validation_of(folder: RunFolder, trial: str) -> Path:
    """A trial's predictions of the validation slices.

    Raises:
        DataError: they are not those that it wrote.
    """
    path = folder.trial(trial) / PREDICTIONS
    _require_as_written(path, recorded_sha256(path.parent, PREDICTIONS))
    return path


def predictor_of(
    folder: RunFolder,
    trials: Sequence[str],
    weights: Sequence[float],
    *,
    flip: bool,
    validation: Path,
    shards: Path | None = None,
    device: torch.device | None = None,
    exact: bool = False,
) -> Predictor:
    """The predictor of some trials, each with its weight in the mean; see `load_predictor`."""
    _refuse_leaky(folder)
    device = device or pick_device()
    configs = [config_of(folder, trial) for trial in trials]
    preprocessing = run_preprocessing(folder, shards, configs)
    members = []
    for trial, config in zip(trials, configs, strict=True):
        kind: Arithmetic = "fp32" if exact else arithmetic(config.precision, device)
        members.append(Member(load_model(folder, trial, device), config, preprocessing, kind))
    pipeline = Pipeline(members, weights, flip=flip).to(device).eval()
    return Predictor(
        labels=configs[0].labels,
        trials=tuple(trials),
        weights=tuple(weights),
        flip=flip,
        preprocessing=preprocessing,
        configs=tuple(configs),
        validation=validation,
        pipeline=pipeline,
        device=device,
    )


def best_trial(folder: RunFolder) -> str:
    """The trial with the best score."""
    if not folder.space.is_file():
        raise ConfigError(f"RUN must be the folder of a run, but {folder} is none; give --out of `ichsearch run`")
    _refuse_leaky(folder)
    best = best_trials(folder, load_space(folder.space).metric, top=1)
    if not best:
        raise NoTrialFinishedError(f"a model needs a finished trial, but {folder} has none; go on with the run")
    return best[0]


def _refuse_leaky(folder: RunFolder) -> None:
    if folder.leaks:
        raise ConfigError(
            f"a model is judged on patients that it has not seen, but the split of {folder.root} is leaky: by slice; "
            "take the run by patient beside it"
        )


def with_weights(folder: RunFolder) -> list[str]:
    """The finished trials whose weights were kept."""
    places = {record.trial: folder.trial(record.trial) for record in folder.records()}
    return [name for name, place in places.items() if (place / WEIGHTS).is_file() and read_result(place)]


def config_of(folder: RunFolder, trial: str) -> TrialConfig:
    """What a trial was trained as."""
    record = folder.record(trial) if trial.isalnum() else None
    known = with_weights(folder)
    if record is None or trial not in known:
        raise ConfigError(
            f"the weights of a trial must have been kept, but those of {trial} were not; "
            f"there are {', '.join(known) or 'none'} (keep: {{best: …}} in the space keeps more)"
        )
    return TrialConfig.model_validate(record.config)


def load_model(folder: RunFolder, trial: str, device: torch.device) -> torch.nn.Module:
    """A trial's model with its best weights, in evaluation mode.

    Raises:
        DataError: the weights are not those that the trial wrote.
    """
    place = folder.trial(trial)
    folder.bring(place)
    _require_as_written(place / WEIGHTS, recorded_sha256(place, WEIGHTS))
    model = make_model(config_of(folder, trial), None, device)
    try:
        model.load_state_dict(load_file(place / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"trials/{trial}/{WEIGHTS} must hold the trial's model, but does not ({type(error).__name__}); restore it"
        ) from error
    return model.eval()


def _require_as_written(path: Path, sha256: str | None) -> None:
    """Refuse a file that has not the hash that was recorded of it; older runs have recorded none.

    Raises:
        DataError: it was changed, or is not there.
    """
    name = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise DataError(f"{name} must be there, but is not; restore it")
    if sha256 not in (None, sha256_of(path)):
        raise DataError(f"{name} must be as it was written, but was changed; restore it")


def run_preprocessing(folder: RunFolder, shards: Path | None, configs: Sequence[TrialConfig]) -> Preprocessing:
    """How the run's slices were made: as it has noted, else as its shards say.

    Raises:
        ConfigError: neither is at hand.
    """
    if folder.preprocessing.is_file():
        try:
            known = Preprocessing.model_validate(read_json(folder.preprocessing))
            return _with_breaks(known, configs)
        except ValidationError as error:
            raise DataError(
                f"{folder.preprocessing.name} must tell how slices were made, but does not; restore it"
            ) from error
    data = shards_of(folder, shards)
    if data is None:
        raise ConfigError(
            f"{folder} does not tell how its slices were made; name the run's own shards with --data "
            "(of evaluate: --run-data)"
        )
    return preprocessing_of(data, sorted({config.size for config in configs if config.channels == "hist"}))


def _with_breaks(known: Preprocessing, configs: Sequence[TrialConfig]) -> Preprocessing:
    """What is known, if it has the break points that the models need."""
    missing = {config.size for config in configs if config.channels == "hist"} - known.hist_breaks.keys()
    if missing:
        raise DataError(
            f"preprocessing.json must have the break points of channels: hist at {min(missing)} px, but has not; "
            "restore it"
        )
    return known
