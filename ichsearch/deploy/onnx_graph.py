"""A pipeline as an ONNX graph, held against torch before it counts as one.

In: a `Pipeline`. Out: a file with dynamic batch, and how far it is from torch.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch.export import Dim

from ichsearch.deploy.pipeline import Pipeline
from ichsearch.dicom.pixels import MAX_HU, MIN_HU
from ichsearch.errors import ConfigError

OPSET: Final = 18
LARGEST_DIFFERENCE: Final = 1e-4
LARGEST_LOG_ODDS_DIFFERENCE: Final = 0.02
"""Of a sure model all probabilities are alike, also those of another model; their odds are not."""
INPUT, OUTPUT = "hu", "probabilities"
CHECKED_BATCHES: Final = (1, 2, 5, 8)
BLUR_PX: Final = 8


class Parity(NamedTuple):
    """How the graph and torch compare: the largest differences, and on how many images."""

    max_difference: float
    max_log_odds_difference: float
    slices: int

    @property
    def holds(self) -> bool:
        """Whether both say the same; what is not a number never does."""
        return bool(
            self.max_difference <= LARGEST_DIFFERENCE and self.max_log_odds_difference <= LARGEST_LOG_ODDS_DIFFERENCE
        )


def write_onnx(pipeline: Pipeline, stored_px: int, path: Path) -> Parity:
    """Write the graph and compare it with torch on images of several batch sizes, on the CPU.

    Raises:
        ConfigError: the model has operations that ONNX lacks, or the graph says something else than torch.
    """
    example = torch.from_numpy(images(3, pipeline.depth, stored_px))
    try:
        with _quiet(), torch.inference_mode():
            torch.onnx.export(
                pipeline,
                (example,),
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"hu": {0: Dim("batch", min=1)}},
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"a model must have an ONNX form, but this one has none ({type(error).__name__}: {_first_line(error)}); "
            "export another trial: its weights are in the run folder as safetensors"
        ) from error
    parity = compare(pipeline, stored_px, path)
    if not parity.holds:
        raise ConfigError(
            f"ONNX and torch must agree to {LARGEST_DIFFERENCE:g}, and to {LARGEST_LOG_ODDS_DIFFERENCE:g} in log odds, "
            f"but differ by {parity.max_difference:.2g} and {parity.max_log_odds_difference:.2g}; export another trial"
        )
    return parity


def compare(pipeline: Pipeline, stored_px: int, path: Path) -> Parity:
    """Hold the graph in `path` against torch on images of several batch sizes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences: list[tuple[float, float]] = []
    for seed, batch in enumerate(CHECKED_BATCHES):
        hu = images(batch, pipeline.depth, stored_px, seed)
        with torch.inference_mode():
            expected = pipeline(torch.from_numpy(hu)).numpy()
        (found,) = session.run([OUTPUT], {INPUT: hu})
        odds = _log_odds(found) - _log_odds(expected)
        differences.append((float(np.abs(found - expected).max()), float(np.abs(odds).max())))
    largest = np.max(differences, axis=0)  # unlike `max` it keeps NaN
    return Parity(float(largest[0]), float(largest[1]), sum(CHECKED_BATCHES))


def _log_odds(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Near 1 float32 cannot tell probabilities apart that near 0 it can."""
    clipped = probabilities.astype(np.float64).clip(1e-30, 1 - 1e-5)
    odds: npt.NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return odds


def images(batch: int, depth: int, side: int, seed: int = 0) -> npt.NDArray[np.int16]:
    """(B, K, S, S) int16 HU of all that CT can show: air, brain, blood and bone in blots, noise on it."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(
        [MIN_HU, 0, 35, 70, 300, 1500, MAX_HU], size=(batch, depth, side // BLUR_PX + 1, side // BLUR_PX + 1)
    )
    blots = coarse.repeat(BLUR_PX, axis=2).repeat(BLUR_PX, axis=3)[:, :, :side, :side]
    noisy = blots + rng.normal(0, 5, blots.shape).round()
    return noisy.clip(MIN_HU, MAX_HU).astype(np.int16)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress and its own deprecations; neither is for the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]
