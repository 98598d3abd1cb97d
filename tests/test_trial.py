"""A trial: it learns, goes on after an interruption to the same bits, keeps its best epoch, and fails by name."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from slice_sets import LITTLE_BRAIN, make_slices, split_of

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import VALIDATION_FOLD, Split
from ichsearch.errors import DataError
from ichsearch.labels import LABELS
from ichsearch.train import setup
from ichsearch.train.config import TrialConfig, TrialFailedError, TrialStoppedError
from ichsearch.train.guard import STEPS_BETWEEN_LOOKS
from ichsearch.train.metrics import score
from ichsearch.train.optimizer import LAYER_GROUP, make_optimizer
from ichsearch.train.setup import make_model, parts_of
from ichsearch.train.steps import Stepper, predict
from ichsearch.train.trial import TrialResult, read_result, run_trial

CPU = torch.device("cpu")
CONFIG = TrialConfig(
    backbone="resnet10t", batch_size=16, size=32, channels="hu", augment=0.5, lr=5e-3, epochs=3, seed=1
)
Whole = tuple[Path, TrialResult, list[dict[str, Any]]]
TIMES = ("seconds", "trained_s", "images_per_s")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slices() -> SliceSet:
    return make_slices(patients=25, slices=6, size=32, unlabelled_patients=3)


@pytest.fixture(scope="module")
def split(slices: SliceSet) -> Split:
    return split_of(slices)


@pytest.fixture(scope="module")
def whole(slices: SliceSet, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder, result and records of a trial that nothing interrupted."""
    folder, records = tmp_path_factory.mktemp("whole"), list[dict[str, Any]]()
    return folder, run_trial(CONFIG, slices, split, folder, device=CPU, on_epoch=records.append), records


def epochs_without_times(folder: Path) -> list[dict[str, Any]]:
    epochs = json.loads((folder / "metrics.json").read_text())["epochs"]
    return [{name: value for name, value in epoch.items() if name not in TIMES} for epoch in epochs]


class StoppedError(Exception):
    """Stands for whatever ends a process between two epochs."""


def stop_after(epoch: int) -> Callable[[dict[str, Any]], None]:
    def on_epoch(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise StoppedError

    return on_epoch


def test_a_trial_finds_the_blobs(whole: Whole) -> None:
    _, result, records = whole
    assert result.score > 0.95
    assert records[-1]["train_loss"] < 0.6 * records[0]["train_loss"]


def test_a_trial_learns_nothing_from_shuffled_labels(slices: SliceSet, split: Split, tmp_path: Path) -> None:
    table = slices.table.copy()
    rng = np.random.default_rng(0)
    table[list(LABELS)] = table[list(LABELS)].to_numpy()[rng.permutation(len(table))]
    config = CONFIG.model_copy(update={"epochs": 2})
    assert run_trial(config, replace(slices, table=table), split, tmp_path, device=CPU).score < 0.85


def test_the_folder_holds_all_results_and_no_checkpoint(
    whole: Whole,
) -> None:
    folder, result, records = whole
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "config.json", "events", "lineage.json", "metrics.json", "predictions.parquet", "trial.lock",
        "weights.safetensors",
    ]  # fmt: skip
    assert TrialConfig.model_validate_json((folder / "config.json").read_text()) == CONFIG
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == records
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert read_result(folder) == result


def test_the_result_counts_what_the_trial_cost(whole: Whole, slices: SliceSet, split: Split) -> None:
    folder, result, records = whole
    assert result.seconds == pytest.approx(sum(record["seconds"] for record in records))
    steps = len(parts_of(slices, split, CONFIG.min_brain).train) // 16
    trained_s = sum(record["trained_s"] for record in records)
    assert result.images_per_s * trained_s == pytest.approx(3 * steps * 16)
    kept = sum(
        value.numel() for name, value in load_file(folder / "weights.safetensors").items() if "running" not in name
    )
    assert result.parameters_m == pytest.approx(kept / 1e6, abs=1e-4)  # but for the batch norms' counters


def test_only_images_that_were_seen_are_counted(slices: SliceSet, split: Split, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"batch_size": 40, "epochs": 1})
    assert 40 < len(parts_of(slices, split, config.min_brain).train) < 80
    result = run_trial(config, slices, split, tmp_path, device=CPU)
    record = json.loads((tmp_path / "metrics.json").read_text())["epochs"][0]
    assert result.images_per_s * record["trained_s"] == pytest.approx(40)
    assert record["images_per_s"] == pytest.approx(result.images_per_s)


def test_a_batch_larger_than_the_data_is_told_by_name(slices: SliceSet, split: Split, tmp_path: Path) -> None:
    rows = len(parts_of(slices, split, CONFIG.min_brain).train)
    fitting, larger = (CONFIG.model_copy(update={"batch_size": rows + more, "epochs": 1}) for more in (0, 1))
    run_trial(fitting, slices, split, tmp_path / "fitting", device=CPU)
    with pytest.raises(TrialFailedError, match=f"^batch_larger_than_data: {rows + 1} slices of {rows} to train on$"):
        run_trial(larger, slices, split, tmp_path / "larger", device=CPU)


def test_the_best_epoch_is_the_one_that_is_stored(whole: Whole, slices: SliceSet, split: Split) -> None:
    folder, result, records = whole
    scores = [record["auroc_any"] for record in records]
    assert result.score == max(scores)
    assert result.best_epoch == scores.index(max(scores)) + 1
    assert result.best_epoch < 3, "this test needs a trial whose last epoch is not its best"
    assert result.metrics == {name: records[result.best_epoch - 1][name] for name in result.metrics}

    model = make_model(CONFIG, None, CPU)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    parts = parts_of(slices, split, CONFIG.min_brain)
    probabilities = predict(model, Batches(slices, parts.validation, CONFIG.recipe, CPU).evaluate())
    stored = pd.read_parquet(folder / "predictions.parquet")
    np.testing.assert_array_equal(stored[[f"probability_{label}" for label in LABELS]].to_numpy(), probabilities)
    assert score(slices.labels[parts.validation], probabilities, LABELS, stored["patient"].to_numpy()) == result.metrics


def test_predictions_name_slice_patient_truth_and_probability(whole: Whole, slices: SliceSet, split: Split) -> None:
    stored = pd.read_parquet(whole[0] / "predictions.parquet")
    assert list(stored) == [
        "slice",
        "patient",
        "series",
        "series_index",
        *(f"{kind}_{label}" for label in LABELS for kind in ("label", "probability")),
    ]
    rows = slices.table.set_index("slice").loc[stored["slice"]]
    assert stored["patient"].tolist() == rows["patient"].tolist()
    for label in LABELS:
        assert stored[f"label_{label}"].tolist() == rows[label].tolist()
    assert {split.patients[name] for name in stored["patient"]} == {VALIDATION_FOLD}


def assert_same_end(folder: Path, result: TrialResult, whole: Whole) -> None:
    other, expected, _ = whole
    assert epochs_without_times(folder) == epochs_without_times(other)
    assert (result.score, result.best_epoch, result.metrics) == (expected.score, expected.best_epoch, expected.metrics)
    for name in ("weights.safetensors", "predictions.parquet"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_trial_interrupted_between_epochs_ends_with_the_same_bits(
    whole: Whole, slices: SliceSet, split: Split, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(StoppedError):
        run_trial(CONFIG, slices, split, tmp_path, device=CPU, on_epoch=stop_after(epoch), checkpoint_every_s=0)
    assert read_result(tmp_path) is None
    torch.rand(5)
    continued: list[dict[str, Any]] = []
    result = run_trial(CONFIG, slices, split, tmp_path, device=CPU, on_epoch=continued.append)
    assert [record["epoch"] for record in continued] == list(range(epoch + 1, 4))
    assert_same_end(tmp_path, result, whole)


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8])
def test_a_trial_interrupted_within_an_epoch_ends_with_the_same_bits(
    whole: Whole, slices: SliceSet, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    real, steps = Stepper.step, [0]

    def counted(self: Stepper, *batch: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == stop + 1:
            raise StoppedError
        return real(self, *batch)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(Stepper, "step", counted)
        run_trial(CONFIG, slices, split, tmp_path, device=CPU, checkpoint_every_s=0)
    torch.rand(5)
    monkeypatch.setattr(Stepper, "step", counted)
    steps[0] = stop + 1
    result = run_trial(CONFIG, slices, split, tmp_path, device=CPU)
    per_epoch = len(parts_of(slices, split, CONFIG.min_brain).train) // CONFIG.batch_size
    assert steps[0] == 1 + 3 * per_epoch, "a step was made twice"
    assert_same_end(tmp_path, result, whole)


@pytest.mark.parametrize("place", ["first step", "last step", "validation", "second epoch"])
def test_a_trial_that_is_told_to_stop_goes_on_from_that_very_place(
    whole: Whole, slices: SliceSet, split: Split, tmp_path: Path, place: str
) -> None:
    steps = len(parts_of(slices, split, CONFIG.min_brain).train) // CONFIG.batch_size
    asked = iter(range(1, 100))
    due = {"first step": 1, "last step": steps, "validation": steps + 1, "second epoch": steps + 4}[place]
    with pytest.raises(TrialStoppedError):
        run_trial(CONFIG, slices, split, tmp_path, device=CPU, must_stop=lambda: next(asked) == due)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 1
    torch.rand(5)
    left = iter(range(1, 100))
    result = run_trial(CONFIG, slices, split, tmp_path, device=CPU, must_stop=lambda: next(left) < 0)
    repeated = place == "validation"
    assert next(left) - 1 == 3 * (steps + 1) - due + repeated, "it is asked once a step and once a batch of validation"
    assert_same_end(tmp_path, result, whole)


def test_a_torn_newest_checkpoint_costs_a_step_and_no_bit(
    whole: Whole, slices: SliceSet, split: Split, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        run_trial(CONFIG, slices, split, tmp_path, device=CPU, on_epoch=stop_after(2), checkpoint_every_s=0)
    newest = sorted((tmp_path / "checkpoint").glob("epoch-*"))[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_same_end(tmp_path, run_trial(CONFIG, slices, split, tmp_path, device=CPU), whole)


def test_a_trial_without_time_for_checkpoints_starts_again(slices: SliceSet, split: Split, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 2})
    with pytest.raises(StoppedError):
        run_trial(config, slices, split, tmp_path, device=CPU, on_epoch=stop_after(1))
    assert not (tmp_path / "checkpoint").exists()
    records: list[dict[str, Any]] = []
    run_trial(config, slices, split, tmp_path, device=CPU, on_epoch=records.append)
    assert [record["epoch"] for record in records] == [1, 2]


def test_a_folder_without_a_finished_trial_has_no_result(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    assert read_result(tmp_path / "never made") is None


def test_a_huge_learning_rate_is_told_as_divergence(slices: SliceSet, split: Split, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr": 1e38})
    with pytest.raises(TrialFailedError, match=r"^diverged: ") as caught:
        run_trial(config, slices, split, tmp_path, device=CPU)
    assert caught.value.reason == "diverged"
    assert read_result(tmp_path) is None
    assert not (tmp_path / "checkpoint").exists()


def test_a_weight_that_is_no_number_ends_a_trial_at_its_first_look(
    slices: SliceSet, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: value.clone() for name, value in make_model(CONFIG, None, CPU).state_dict().items()}
    state["conv1.0.weight"][0, 0, 0, 0] = math.nan
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    save_file(state, tmp_path / "weights.safetensors")
    real, steps = Stepper.step, [0]

    def counted(self: Stepper, *batch: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        return real(self, *batch)

    monkeypatch.setattr(Stepper, "step", counted)
    with pytest.raises(TrialFailedError, match="the loss is not finite"):
        run_trial(CONFIG, slices, split, tmp_path / "trial", weights=tmp_path / "weights.safetensors", device=CPU)
    assert steps[0] <= STEPS_BETWEEN_LOOKS


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A machine on which only so many slices go through a model at once."""
    memory, real = {"fits": 1}, setup.make_model

    def refuse(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > memory["fits"]:
            raise torch.OutOfMemoryError

    def make_greedy_model(*arguments: Any) -> torch.nn.Module:
        model = real(*arguments)
        model.register_forward_pre_hook(refuse)
        return model

    monkeypatch.setattr(setup, "make_model", make_greedy_model)
    return memory


def test_too_little_memory_halves_the_micro_batch_and_keeps_the_batch(
    slices: SliceSet, split: Split, tmp_path: Path, small_memory: dict[str, int]
) -> None:
    small_memory["fits"] = 5
    records: list[dict[str, Any]] = []
    result = run_trial(CONFIG, slices, split, tmp_path, device=CPU, on_epoch=records.append)
    assert result.micro_batch == 4
    assert [record["micro_batch"] for record in records] == [4, 4, 4]
    assert result.score > 0.9


def test_too_little_memory_for_the_optimizer_is_told_by_name(
    slices: SliceSet, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", no_memory)
    with pytest.raises(TrialFailedError, match="out_of_memory: the model, its optimizer or its slices do not fit"):
        run_trial(CONFIG, slices, split, tmp_path, device=CPU)


def test_too_little_memory_for_one_slice_is_told_by_name(
    slices: SliceSet, split: Split, tmp_path: Path, small_memory: dict[str, int]
) -> None:
    small_memory["fits"] = 0
    with pytest.raises(TrialFailedError, match="out_of_memory") as caught:
        run_trial(CONFIG, slices, split, tmp_path, device=CPU)
    assert caught.value.reason == "out_of_memory"


@pytest.mark.parametrize("min_brain", [0.0, 0.02, 0.3])
def test_validation_slices_are_all_labelled_ones_whatever_min_brain(
    slices: SliceSet, split: Split, min_brain: float
) -> None:
    folds, labelled = split.fold_of(slices.table), ~np.isnan(slices.labels).any(axis=1)
    parts = parts_of(slices, split, min_brain)
    assert parts.validation.tolist() == np.flatnonzero(labelled & (folds == VALIDATION_FOLD)).tolist()
    share = slices.table["brain_share"].to_numpy()
    assert (share[parts.validation] < 0.02).any()
    assert bool((share[parts.train] < 0.02).any()) is (min_brain <= LITTLE_BRAIN)
    assert labelled[parts.train].all()
    assert set(folds[parts.train]) == {2, 3, 4}


def test_a_filter_that_leaves_nothing_is_a_data_error(slices: SliceSet, split: Split) -> None:
    with pytest.raises(DataError, match=r"brain share of 0\.99"):
        parts_of(slices, split, 0.99)


@pytest.mark.parametrize("backbone", ["resnet10t", "test_vit"])
def test_norms_and_biases_do_not_decay_and_every_parameter_has_its_group(backbone: str) -> None:
    config = CONFIG.model_copy(update={"backbone": backbone})
    model = make_model(config, None, CPU)
    groups = make_optimizer(model, 0.2).param_groups
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.2}
    assert {group[LAYER_GROUP] for group in groups} == {0, 1, 2}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "change",
    [
        {"task": "any"},
        {"task": "positives", "metric": "accuracy_multi"},
        {"channels": "windows"},
        {"channels": "neighbours"},
        {"channels": "hist"},
        {"head": "concat_pool"},
        {"imbalance": "loss"},
        {"imbalance": "sampler"},
        {"label_smoothing": 0.1, "clip_norm": 1.0},
        {"lr_schedule": "fine_tune"},
        {"augmentations": "flip+rotation+blur+shift_scale+erasing+noise+gain"},
        {"precision": "bf16"},
        {"metric": "log_loss"},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_every_choice_of_a_recipe_trains(
    slices: SliceSet, split: Split, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = TrialConfig.model_validate(CONFIG.model_dump() | {"epochs": 2} | change)
    records: list[dict[str, Any]] = []
    result = run_trial(config, slices, split, tmp_path, device=CPU, on_epoch=records.append)
    assert result.score == records[result.best_epoch - 1][config.metric]
    assert all(math.isfinite(record["train_loss"]) for record in records)
    stored = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(stored)[4:] == [f"{kind}_{label}" for label in config.labels for kind in ("label", "probability")]


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_pretrained_body_is_frozen_at_first_but_for_its_norms(
    slices: SliceSet, split: Split, tmp_path: Path, pretrained: bool
) -> None:
    config = TrialConfig.model_validate(CONFIG.model_dump() | {"lr_schedule": "fine_tune", "metric": "log_loss"})
    seen: list[dict[str, torch.Tensor]] = []
    start = {name: value.clone() for name, value in make_model(config, None, CPU).state_dict().items()}
    weights = tmp_path / "weights.safetensors"
    save_file(start, weights)

    def keep(record: dict[str, Any]) -> None:
        name = f"epoch-{record['epoch']:03d}"
        seen.append(load_file(tmp_path / "trial" / "checkpoint" / name / "model.safetensors"))
        raise StoppedError

    with pytest.raises(StoppedError):
        run_trial(
            config,
            slices,
            split,
            tmp_path / "trial",
            weights=weights if pretrained else None,
            device=CPU,
            on_epoch=keep,
            checkpoint_every_s=0,
        )
    moved = {name for name, value in seen[0].items() if not torch.equal(value, start[name])}
    assert {"fc.weight", "fc.bias", "bn1.weight", "bn1.running_mean"} <= moved
    assert bool({name for name in moved if start[name].ndim == 4}) is not pretrained


def test_the_seed_decides_the_random_weights() -> None:
    def first_weight(seed: int) -> torch.Tensor:
        return next(make_model(CONFIG.model_copy(update={"seed": seed}), None, CPU).parameters())

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("epochs", 0),
        ("batch_size", 1),
        ("augment", 1.1),
        ("augmentations", "flip+twist"),
        ("metric", "auroc_twist"),
        ("min_brain", 1.0),
        ("speed", 1),
    ],
)
def test_a_configuration_out_of_its_bounds_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        TrialConfig.model_validate(CONFIG.model_dump() | {field: value})
