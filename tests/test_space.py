"""The grammar of spaces: what a file may say, and what is drawn, listed and counted from it."""

from collections import Counter
from pathlib import Path

import optuna
import pytest
from spaces import FULL, SMALL, write_space

from ichsearch.errors import ConfigError
from ichsearch.search.combinations import size_of
from ichsearch.search.drawing import chosen_by, drawn_by
from ichsearch.search.parameters import SEARCHED
from ichsearch.search.resolved import differences, resolved, save_space
from ichsearch.search.space import Space
from ichsearch.search.space_file import find_space, load_space
from ichsearch.train.config import TrialConfig


def small(folder: Path, *options: str) -> Space:
    return load_space(write_space(folder), options)


def test_no_is_text_and_1e_3_a_number(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path, SMALL.replace("lr: {factor: [0.3, 3.0]}", "lr: 1e-3")))
    assert space.pretrained == "no"
    assert (
        space.draw(optuna.trial.FixedTrial({"backbone": "test_resnet", "batch_size": 8, "augment": 0.5}))["lr"] == 1e-3
    )


def test_a_resolved_space_reads_back_equal_and_says_every_value(tmp_path: Path) -> None:
    files = {name: find_space(name) for name in ("quickstart.yaml", "architectures.yaml")}
    files["full"] = write_space(tmp_path, FULL, "full")
    for name, path in files.items():
        space = load_space(path)
        save_space(space, tmp_path / f"{name} again")
        again = load_space(tmp_path / f"{name} again")
        assert again == space
        assert differences(space, again) == []
        assert resolved(again) == resolved(space)
        assert set(resolved(space)["parameters"]) <= set(SEARCHED)
        assert set(SEARCHED) - set(resolved(space)["parameters"]) <= {"augmentations", "lr_spread", "frozen_epochs"}


def test_what_does_not_count_is_not_written(tmp_path: Path) -> None:
    written = resolved(small(tmp_path))["parameters"]
    assert written["rise"] == 0.25
    assert written["augmentations"] == "flip+rotation+blur"
    assert not {"lr_spread", "frozen_epochs"} & set(written)
    assert "augmentations" not in resolved(small(tmp_path, "parameters.augment=0"))["parameters"]


def test_a_full_file_means_what_it_says(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path, FULL))
    assert (space.time_s, space.device_hours, space.trial_limit_s) == (28_800, 24, 90)
    assert space.promotion.model_dump() == {"eta": 2, "first_epochs": 2, "child": "continue", "random_share": 0}
    assert space.keep.model_dump() == {"best": 3, "disk_gb": 1.5}
    assert space.constraints.max_parameters == 30_000_000
    assert space.rungs() == (2, 4, 9)


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    content = SMALL.replace("trials: 3\nepochs: 2\n", "")
    space = load_space(write_space(tmp_path, content))
    assert (space.trials, space.epochs, space.strategy, space.schedule) == (20, 6, "promote", "per_rung")
    assert (space.time_s, space.device_hours, space.trial_limit_s) == (None, None, None)
    assert space.constraints.max_parameters is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("8h", 28_800), ("1d", 86_400), ("1.5h", 5400), ("3", 3), ("0.5", 0.5)],
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    assert small(tmp_path, f"time={text}").time_s == seconds


@pytest.mark.parametrize(
    ("options", "rungs"),
    [
        (["epochs=9"], (1, 4, 9)),
        (["epochs=6"], (1, 6)),
        (["epochs=10"], (1, 4, 10)),
        (["epochs=2"], (1, 2)),
        (["epochs=1"], (1,)),
        (["epochs=27", "promotion.first_epochs=3"], (3, 12, 27)),
        (["epochs=27", "promotion.first_epochs=4", "promotion.eta=3"], (4, 12, 27)),
        (["epochs=8", "promotion.eta=2", "trials=4"], (1, 2, 4, 8)),
        (["epochs=8", "promotion.eta=2", "trials=2"], (4, 8)),
        (["epochs=9", "trials=1"], (9,)),
        (["epochs=9", "strategy=full"], (9,)),
        (["epochs=9", "pretrained=auto", "parameters.lr_schedule=fine_tune"], (2, 9)),
        (["epochs=9", "pretrained=auto", "parameters.lr_schedule=fine_tune", "schedule=whole"], (1, 4, 9)),
    ],
)
def test_rungs(tmp_path: Path, options: list[str], rungs: tuple[int, ...]) -> None:
    assert small(tmp_path, *options).rungs() == rungs


def test_differences_name_the_value_on_both_sides(tmp_path: Path) -> None:
    old = load_space(write_space(tmp_path))
    new = load_space(write_space(tmp_path, SMALL.replace("epochs: 2", "epochs: 5").replace("[0.0, 1.0]", "[0.0, 0.5]")))
    found = differences(old, new)
    assert [item.keys for item in found] == [("epochs",), ("parameters", "augment", "float")]
    assert [str(item) for item in found] == [
        "epochs: 2 in the run, 5 asked for",
        "parameters.augment.float: [0.0, 1.0] in the run, [0.0, 0.5] asked for",
    ]


def test_a_shipped_space_is_found_by_name_unless_the_folder_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_space(find_space("architectures.yaml")).name == "architectures"
    write_space(tmp_path, name="architectures.yaml")
    assert load_space(find_space("architectures.yaml")).name == "small"
    with pytest.raises(ConfigError, match=r"did you mean quickstart.yaml"):
        find_space("quikstart.yaml")


def test_architectures_searches_the_five_of_the_paper_with_smaller_batches_for_densenet() -> None:
    space = load_space(find_space("architectures.yaml"))
    assert space.backbones() == ["resnet18", "resnet50", "resnet101", "densenet121", "alexnet"]
    assert space.sizes() == [256]
    batches = {name: set[int]() for name in space.backbones()}
    for config in space.input_configs():
        batches[config.backbone].add(config.batch_size)
    assert max(batches["densenet121"]) < max(batches["resnet18"])


def drawn(space: Space, **fixed: object) -> dict[str, object]:
    return dict(space.draw(optuna.trial.FixedTrial(fixed)))


def test_a_condition_replaces_the_domain(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path))
    plain = drawn(space, backbone="test_resnet", batch_size=16, augment=0.5, lr_factor=1.0)
    assert plain["batch_size"] == 16
    name = "batch_size[backbone=test_efficientnet]"
    other = drawn(space, backbone="test_efficientnet", **{name: 8}, augment=0.5, lr_factor=1.0)
    assert other["batch_size"] == 8


def test_the_lr_finder_runs_once_per_backbone_batch_size_and_input(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path))
    found = [(config.backbone, config.batch_size, config.size, config.channels) for config in space.input_configs()]
    assert sorted(found) == [
        ("test_efficientnet", 8, 32, "hu"),
        ("test_resnet", 8, 32, "hu"),
        ("test_resnet", 16, 32, "hu"),
    ]


def test_a_constant_lr_needs_no_finder(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path, SMALL.replace("{factor: [0.3, 3.0]}", "0.001")))
    assert not space.lr_may_be_factor()
    assert space.input_configs() == []


def some(space: Space, number: int = 200) -> list[dict[str, object]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [dict(space.draw(study.ask())) for _ in range(number)]


def test_what_does_not_count_is_not_drawn(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path, FULL))
    for values in some(space):
        fine_tune = values["lr_schedule"] == "fine_tune"
        assert ({"lr_spread", "frozen_epochs"} <= set(values)) == fine_tune
        assert ({"rise", "start_divisor", "end_divisor"} & set(values) == set()) == fine_tune
        assert ("augmentations" in values) == (values["augment"] != 0)
    assert {values["augment"] for values in some(space)} == {0.0, 0.5, 1.0}


def test_a_case_gives_a_value_removes_a_parameter_or_makes_a_factor_a_rate(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path, FULL))
    for values in some(space):
        vit = values["backbone"] == "test_vit2"
        assert ("channels" in values) == (not vit)
        assert values["lr_schedule"] == "fine_tune" or not vit
        assert space.lr_is_factor(values) == (not vit)
        assert isinstance(values["lr"], float)
        assert (values["lr"] <= 1e-2) == vit
        assert 0.001 <= values["label_smoothing"] <= 0.1
    assert {config.channels for config in space.inputs() if config.backbone == "test_vit2"} == {"windows"}
    assert all(values["label_smoothing"] == 0 for values in some(load_space(tmp_path / "space.yaml", ["task=any"]), 9))


def test_every_draw_is_a_configuration_of_a_trial(tmp_path: Path) -> None:
    for values in some(load_space(write_space(tmp_path, FULL))):
        TrialConfig.model_validate({**values, "epochs": 9})


def test_constants_are_drawn_but_not_asked_for(tmp_path: Path) -> None:
    space = small(tmp_path)
    trial = optuna.create_study().ask()
    values = space.draw(trial)
    assert set(trial.params) <= {
        "backbone",
        "batch_size",
        "batch_size[backbone=test_efficientnet]",
        "augment",
        "lr_factor",
    }
    assert set(space.varied()) == {"backbone", "batch_size", "augment", "lr"}
    assert values["weight_decay"] == 0.01


@pytest.mark.parametrize(("factor", "expected"), [("1.0", {1.0}), ("{choice: [0.5, 1, 2]}", {0.5, 1.0, 2.0})])
def test_a_factor_may_be_a_number_or_a_choice(tmp_path: Path, factor: str, expected: set[float]) -> None:
    space = small(tmp_path, f"parameters.lr={{factor: {factor}}}")
    assert {values["lr"] for values in some(space, 30)} == expected
    assert space.lr_may_be_factor()
    assert len(space.input_configs()) == 3


def test_a_grid_has_every_configuration_that_is_allowed_once(tmp_path: Path) -> None:
    options = ["strategy=grid", "parameters.augment={float: [0, 1], step: 0.5}", "parameters.lr={factor: 1.0}"]
    space = small(tmp_path, *options, "parameters.augmentations={choice: [flip, blur]}")
    grid = space.grid()
    assert len(grid) == 3 * (1 + 2 * 2)
    assert Counter(values["backbone"] for values in grid) == {"test_resnet": 10, "test_efficientnet": 5}
    assert len({repr(sorted(values.items())) for values in grid}) == len(grid)
    size = size_of(space.parameters, space.constraints, space.task)
    assert (size.combinations, size.continuous, size.complete) == (15, [], True)
    point = dict.fromkeys(space.parameters, 0.5)
    assert [drawn_by(space.draw, chosen_by(point, values)).drawn for values in grid] == grid
    fewer = small(tmp_path, *options, "constraints.forbidden=[{backbone: test_resnet, augment: [0, 0.5]}]")
    assert Counter(values["backbone"] for values in fewer.grid()) == {"test_resnet": 2, "test_efficientnet": 3}


def test_a_grid_has_as_many_trials_as_configurations_unless_the_file_says_another_number(tmp_path: Path) -> None:
    finite = "parameters: {backbone: test_resnet, batch_size: {choice: [8, 16]}, size: 32, lr: {choice: [0.1, 1.0, 2]}}"
    content = SMALL[: SMALL.index("parameters:")] + finite + "\nstrategy: grid\n"
    assert load_space(write_space(tmp_path, content)).trials == 3
    assert load_space(write_space(tmp_path, content.replace("trials: 3\n", ""))).trials == 6


def test_the_number_of_configurations(tmp_path: Path) -> None:
    space = small(tmp_path)
    assert size_of(space.parameters, space.constraints, space.task) == (3, ["augment", "lr"], True)
    options = ["parameters.weight_decay={choice: [0, 0.1]}", "parameters.clip_norm={int: [0, 1000000]}"]
    space = small(tmp_path, *options)
    assert size_of(space.parameters, space.constraints, space.task) == (3 * 2 * 1_000_001, ["augment", "lr"], True)


def test_options_replace_add_and_the_last_one_counts(tmp_path: Path) -> None:
    space = small(
        tmp_path, "epochs=4", "parameters.size=64", "promotion.eta=2", "epochs=8",
        "parameters.backbone={choice: [test_resnet, test_efficientnet, resnet10t]}", "pretrained=no",
    )  # fmt: skip
    assert (space.epochs, space.sizes(), space.promotion.eta, space.pretrained) == (8, [64], 2, "no")
    assert space.backbones() == ["test_resnet", "test_efficientnet", "resnet10t"]
    assert small(tmp_path, "lr_finder.steps=30").lr_finder.steps == 30
    assert small(tmp_path, "parameters.lr=1e-3").parameters["lr"].domains()[0].value == 1e-3
