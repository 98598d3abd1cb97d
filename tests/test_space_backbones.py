"""Which backbones a space has: patterns, models that do not fit, and constraints."""

from pathlib import Path

import optuna
import pytest
from spaces import write_space

from ichsearch.errors import ConfigError
from ichsearch.model.backbones import create_model, fits, parameter_count, parameters_m
from ichsearch.model.heads import Head
from ichsearch.search.resolved import as_text, resolved
from ichsearch.search.space import Space
from ichsearch.search.space_file import load_space

SHUFFLENETS = [f"shufflenet_v2_x{size}" for size in ("0_5", "1_0", "1_5", "2_0")]


def small(folder: Path, *options: str) -> Space:
    return load_space(write_space(folder), options)


def one_batch_size(folder: Path, choice: str, *options: str) -> Space:
    return small(folder, "parameters.batch_size=8", f"parameters.backbone={{choice: {choice}}}", *options)


def test_a_pattern_stands_for_models_of_timm_and_torchvision(tmp_path: Path) -> None:
    space = one_batch_size(tmp_path, "[test_resnet, 'shufflenet_v2_*', test_resne?]")
    assert space.backbones() == ["test_resnet", *SHUFFLENETS]
    assert space.resolved_wildcards == {"shufflenet_v2_*": SHUFFLENETS, "test_resne?": ["test_resnet"]}
    assert "*" not in as_text(space)


def test_a_resolved_pattern_is_names_for_ever(tmp_path: Path) -> None:
    space = one_batch_size(tmp_path, "['shufflenet_v2_*']", "constraints.max_parameters=1e6")
    path = tmp_path / "space.yaml"
    path.write_text(as_text(space))
    again = load_space(path)
    assert again == space
    assert again.backbones() == ["shufflenet_v2_x0_5"]
    assert again.resolved_wildcards == {}
    assert list(space.left_out) == SHUFFLENETS[1:]


def test_a_constant_may_be_a_pattern(tmp_path: Path) -> None:
    assert small(tmp_path, "parameters.batch_size=8", "parameters.backbone=shufflenet_v2_*").backbones() == SHUFFLENETS


def test_conditions_and_forbidden_combinations_may_be_patterns(tmp_path: Path) -> None:
    space = small(
        tmp_path,
        "parameters.backbone={choice: [test_resnet, 'shufflenet_v2_*']}",
        "parameters.batch_size={choice: [8, 16], when: [{if: {backbone: '*_x2_0'}, value: 4}]}",
        "constraints.forbidden=[{backbone: 'shufflenet*', batch_size: 16}]",
    )
    found = {(config.backbone, config.batch_size) for config in space.input_configs()}
    assert found == {(name, 8) for name in SHUFFLENETS[:3]} | {
        ("test_resnet", 8),
        ("test_resnet", 16),
        (SHUFFLENETS[3], 4),
    }


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["parameters.size=36"], "it cannot be trained on 1 channels of 36 px with a linear head"),
        (["parameters.head=concat_pool"], "it cannot be trained on 1 channels of 32 px with a concat_pool head"),
    ],
)
def test_of_a_pattern_what_does_not_fit_is_left_out(tmp_path: Path, options: list[str], why: str) -> None:
    everything = one_batch_size(tmp_path, "['test_*t']").backbones()
    space = one_batch_size(tmp_path, "['test_*t']", *options)
    assert "test_resnet" in space.backbones()
    assert {"test_vit"} <= set(space.left_out) < set(everything)
    assert set(space.left_out.values()) == {why}
    with pytest.raises(ConfigError, match=r"none of the \d+ that 'test_vit\*' matches can be"):
        one_batch_size(tmp_path, "[test_resnet, 'test_vit*']", *options)


def test_a_backbone_need_only_see_the_sizes_it_is_given(tmp_path: Path) -> None:
    size = "parameters.size={choice: [32], when: [{if: {backbone: alexnet}, value: 64}]}"
    space = one_batch_size(tmp_path, "[test_resnet, alexnet]", size)
    assert {(config.backbone, config.size) for config in space.inputs()} == {("test_resnet", 32), ("alexnet", 64)}
    forbidden = "constraints.forbidden=[{backbone: alexnet, size: 32}]"
    space = one_batch_size(tmp_path, "[test_resnet, alexnet]", "parameters.size={choice: [32, 64]}", forbidden)
    assert len(space.inputs()) == 3
    with pytest.raises(ConfigError, match="alexnet needs images of at least 63 px"):
        one_batch_size(tmp_path, "[test_resnet, alexnet]", "parameters.size={choice: [32, 64]}")


def test_a_condition_on_what_is_left_out_goes_with_it(tmp_path: Path) -> None:
    space = small(tmp_path, "parameters.backbone={choice: [test_efficientnet, resnet18, test_resnet]}",
                  "constraints.max_parameters=450_000",
                  "parameters.batch_size={choice: [8], when: [{if: {backbone: resnet18}, value: 4}, "
                  "{if: {backbone: [resnet18, test_resnet]}, value: 16}]}")  # fmt: skip
    assert "resnet18" not in space.backbones()
    assert "resnet18" not in as_text(space)
    assert resolved(space)["parameters"]["batch_size"]["when"] == [{"if": {"backbone": "test_resnet"}, "value": 16}]
    assert space.left_out == {"resnet18": "max_parameters 450,000: resnet18 has 11,173,318"}


def test_draws_are_held_against_the_constraints(tmp_path: Path) -> None:
    space = small(
        tmp_path,
        "constraints.forbidden=[{backbone: test_resnet, batch_size: 16}, {channels: hist}]",
        "parameters.channels={choice: [hu, hist], when: [{if: {backbone: test_efficientnet}, remove: true}]}",
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(100):
        drawn = space.draw(study.ask())
        said = space.allows(drawn)
        if drawn["backbone"] == "test_resnet" and drawn["batch_size"] == 16:
            assert said == "forbidden: backbone test_resnet, batch_size 16"
        elif drawn.get("channels") == "hist":
            assert said == "forbidden: channels hist"
        else:
            assert said is None
    assert {(config.backbone, config.batch_size, config.channels) for config in space.input_configs()} == {
        ("test_resnet", 8, "hu"), ("test_efficientnet", 8, "windows"),
    }  # fmt: skip


def test_what_a_case_removes_counts_with_its_default(tmp_path: Path) -> None:
    removed = "parameters.channels={choice: [hu, hist], when: [{if: {backbone: test_efficientnet}, remove: true}]}"
    channels = "parameters.channels={choice: [hu, windows], when: [{if: {backbone: test_efficientnet}, remove: true}]}"
    assert small(tmp_path, removed, "constraints.forbidden=[{channels: hist}]").backbones()
    assert small(tmp_path, channels, "constraints.forbidden=[{channels: windows}]").backbones() == ["test_resnet"]


@pytest.mark.parametrize("head", ["linear", "concat_pool"])
@pytest.mark.parametrize("name", ["test_resnet", "alexnet", "densenet121"])
def test_parameters_are_counted_without_making_the_model(name: str, head: Head) -> None:
    model = create_model(name, channels=1, classes=5, size=64, head=head)
    assert parameter_count(name, 64, 1, 5, head) == round(parameters_m(model) * 1e6)


def test_the_limit_counts_the_head_and_the_tasks_classes(tmp_path: Path) -> None:
    six = parameter_count("test_resnet", 32, 1, 6, "linear")
    assert six is not None
    options = ["parameters.backbone=test_resnet", "parameters.batch_size=8", f"constraints.max_parameters={six - 1}"]
    assert small(tmp_path, *options, "task=any").backbones() == ["test_resnet"]
    with pytest.raises(ConfigError, match="leave a backbone"):
        small(tmp_path, *options)


def test_what_was_found_out_is_kept_and_a_torn_line_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path))
    assert not fits("alexnet", 40)
    (path,) = (tmp_path / "backbones").iterdir()
    (line,) = path.read_text().splitlines()
    assert "_obstacle" in line
    other = tmp_path / "other"
    (other / "backbones").mkdir(parents=True)
    (other / "backbones" / path.name).write_text('["[\\"_obst' + "\n" + line.replace("alexnet", "resnet18") + "\n")
    monkeypatch.setenv("ICHSEARCH_CACHE", str(other))
    assert not fits("resnet18", 40)
    assert fits("resnet18", 41)
