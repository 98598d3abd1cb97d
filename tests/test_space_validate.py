"""`ichsearch validate` and `schema`: what a space would do and cost, told before it does it."""

import sys
from pathlib import Path

import pytest
import torch
from slice_sets import as_slice_set, make_rows, split_of, write_shards
from spaces import SMALL, write_space

from ichsearch.cli import main
from ichsearch.errors import ConfigError, DataError
from ichsearch.files import to_json
from ichsearch.search.resolved import as_text
from ichsearch.search.schema import space_schema
from ichsearch.search.space_file import load_space
from ichsearch.search.validate import SliceCounts, costs, count_slices, summary
from ichsearch.shards.metadata import write_metadata
from ichsearch.storage import open_folder
from ichsearch.train.config import InputConfig
from ichsearch.train.probe import SMALL_BATCHES, Cost, cost_of, measured
from ichsearch.train.setup import parts_of

CONFIG = InputConfig(backbone="test_resnet", batch_size=8, size=32, channels="hu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    manifest = write_shards(folder, make_rows(patients=20, slices=6), 32)
    write_metadata(open_folder(folder), [shard.file for shard in manifest.shards], 32)
    return folder


def ichsearch(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["ichsearch", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_cost_is_of_real_steps_in_a_process_of_its_own() -> None:
    cost = cost_of(CONFIG, threads=1)
    assert isinstance(cost, Cost)
    assert cost.device == "CPU, 1 thread"
    assert 0 < cost.predict_s < cost.step_s < 2
    larger = cost_of(CONFIG.model_copy(update={"batch_size": 16, "size": 256}), threads=1)
    assert isinstance(larger, Cost)
    assert larger.step_s > 2 * cost.step_s
    assert larger.memory_bytes > cost.memory_bytes + 20e6, "a process's memory grows with its images"


def test_a_slow_models_cost_is_told_from_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ichsearch.train.probe.SECONDS", 0.0)
    cost = cost_of(CONFIG.model_copy(update={"batch_size": 64}), threads=1)
    small = [cost_of(CONFIG.model_copy(update={"batch_size": batch}), threads=1) for batch in SMALL_BATCHES]
    assert isinstance(cost, Cost)
    assert isinstance(small[1], Cost)
    assert cost.measured_batch == SMALL_BATCHES[1]
    assert cost.step_s == pytest.approx(4 * small[1].step_s)
    assert cost.memory_bytes >= small[1].memory_bytes


def test_a_process_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ichsearch.train.probe.LIMIT_S", 0.01)
    assert cost_of(CONFIG.model_copy(update={"seed": 7}), threads=1) == "a few steps take longer than 0 s"


def test_a_model_that_cannot_be_trained_says_why() -> None:
    config = InputConfig(backbone="test_resnet", batch_size=2, size=16, channels="hu", head="concat_pool")
    assert isinstance(measured(config, torch.device("cpu")), Cost)
    answer = cost_of(InputConfig(backbone="inception_v3", batch_size=2, size=32, channels="hu"), threads=1)
    assert isinstance(answer, str)
    assert "inception_v3" in answer


def test_a_trials_time_is_that_of_its_steps_and_of_judging_each_epoch() -> None:
    cost = Cost(2.0, 0.1, 0, 8, 8, "CPU")
    assert cost.trial_s(training_slices=100, validation_slices=30, batch_size=8, epochs=3) == 3 * (12 * 2 + 3)


def test_the_data_are_counted_as_a_trial_would_see_them(tmp_path: Path, shards: Path) -> None:
    space = load_space(write_space(tmp_path), ["parameters.min_brain={choice: [0.02, 0.3]}"])
    slices = as_slice_set(make_rows(patients=20, slices=6), 32)
    parts = parts_of(slices, split_of(slices), 0.02)
    assert count_slices(space, shards) == (len(parts.train), len(parts.validation))
    with pytest.raises(ConfigError, match="at most the shards' 32 px, but is 64"):
        count_slices(load_space(tmp_path / "space.yaml", ["parameters.size=64"]), shards)
    with pytest.raises(DataError, match=r"manifest\.json"):
        count_slices(space, tmp_path)


def test_the_summary_says_how_large_a_space_is_and_how_it_is_searched(tmp_path: Path) -> None:
    path = write_space(tmp_path)
    assert summary(load_space(path)) == [
        "configurations: continuous (augment, lr), times 3 of the other parameters",
        "strategy promote: sampler tpe, rungs of 1 → 2 epochs, schedule per_rung, children continue",
        "budget: 3 trials",
    ]
    options = [
        "epochs=9", "time=8h", "trial_limit=90s", "device_hours=24", "parameters.augment=0.5", "parameters.lr=0.001",
        "parameters.backbone={choice: [test_efficientnet, 'shufflenet_v2_*']}", "constraints.max_parameters=2e6",
    ]  # fmt: skip
    assert summary(load_space(path, options)) == [
        "shufflenet_v2_*: 2 backbones: shufflenet_v2_x0_5, shufflenet_v2_x1_0",
        "left out, more than max_parameters: shufflenet_v2_x1_5, shufflenet_v2_x2_0",
        "configurations: 5",
        "strategy promote: sampler tpe, rungs of 1 → 3 → 9 epochs, schedule per_rung, children continue",
        "budget: 3 trials, time 8 h, trial_limit 90 s, 24 device hours",
    ]
    grid = [*options[4:7], "strategy=grid"]
    assert summary(load_space(path, grid))[-2] == "strategy grid: every combination once, 2 epochs each"


def test_costs_are_told_per_backbone_and_batch_size(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path), ["parameters.size={choice: [32, 48]}"])
    head, *lines = costs(space, None)
    assert head.startswith("a trial of 2 epochs for 1,000 training slices on this machine (CPU, ")
    assert [line.split(": ")[0].strip() for line in lines] == [
        "test_resnet · batch 8 · 48 px", "test_resnet · batch 16 · 48 px", "test_efficientnet · batch 8 · 48 px",
    ]  # fmt: skip
    assert all(line.endswith(" GB") for line in lines)
    head, *_ = costs(space, SliceCounts(100, 10))
    assert head.startswith("a trial of 2 epochs on this machine")


def test_validate_prints_the_resolved_file_and_takes_options(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_space(tmp_path)
    assert ichsearch(monkeypatch, "validate", path, "-o", "epochs=4", "-o", "trials=5", "--no-probe") == 0
    printed = capsys.readouterr().out
    resolved, _, told = printed.partition("\nconfigurations")
    assert resolved.strip() == as_text(load_space(path, ["epochs=4", "trials=5"])).strip()
    assert "budget: 5 trials" in told
    assert "GB" not in told
    assert ichsearch(monkeypatch, "validate", path, "--data", shards) == 0
    assert capsys.readouterr().out.count(" GB\n") == 3


def test_what_is_wrong_with_a_space_or_an_option_ends_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_space(tmp_path, SMALL.replace("epochs: 2", "epochs: two"))
    assert ichsearch(monkeypatch, "validate", path) == 4
    assert f"{path}:4: epochs" in capsys.readouterr().err
    assert ichsearch(monkeypatch, "validate", path, "-o", "epochs=two") == 4
    assert "-o epochs=two: epochs" in capsys.readouterr().err
    assert ichsearch(monkeypatch, "run", "--space", path, "-o", "epochs=3", "-o", "epoch=2") == 4
    assert "-o epoch=2: epoch: unknown key" in capsys.readouterr().err


def test_the_schema_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ichsearch(monkeypatch, "schema") == 0
    assert capsys.readouterr().out.encode() == to_json(space_schema())
    assert ichsearch(monkeypatch, "schema", "--out", tmp_path / "space.schema.json") == 0
    assert (tmp_path / "space.schema.json").read_bytes() == to_json(space_schema())
    assert "# yaml-language-server: $schema=space.schema.json" in capsys.readouterr().out
