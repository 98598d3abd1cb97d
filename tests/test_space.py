"""The grammar of spaces: what is wrong is refused with file, line, rule, value and remedy."""

import re
from pathlib import Path

import optuna
import pytest
from spaces import SMALL, write_space

from ichsearch.errors import ConfigError
from ichsearch.search.resolved import differences, save_space
from ichsearch.search.space import Space
from ichsearch.search.space_file import find_space, load_space

WRONG = {
    "unknown key": ("epochs: 2", "epoch: 2", 4, "unknown key 'epoch'; did you mean epochs"),
    "unknown key of a section": ("{steps: 20}", "{stepps: 20}", 6, "unknown key 'stepps'; did you mean steps"),
    "key in the wrong place": (
        "  size: 32",
        "  size: 32\n  epochs: 3",
        15,
        "it belongs beside `parameters`, not below it",
    ),
    "unknown parameter": ("  size: 32", "  sise: 32", 14, "unknown parameter 'sise'; did you mean size"),
    "unknown key of a domain": ("[0.0, 1.0]}", "[0.0, 1.0], lag: true}", 16, "unknown key 'lag'; did you mean log"),
    "wrong type": ("epochs: 2", "epochs: two", 4, "valid integer.*'two'"),
    "below its minimum": ("trials: 3", "trials: 0", 3, "greater than or equal to 1.*0"),
    "unknown metric": ("auroc_any", "auroc", 2, "'auroc_any'.*'auroc'"),
    "unknown backbone": ("choice: [test_resnet,", "choice: [resnet81,", 8, "'resnet81'.*did you mean resnet18"),
    "backbone that needs larger images": ("choice: [test_resnet,", "choice: [alexnet,", 8, "at least 63 px.*32"),
    "missing parameter": ("  size: 32\n", "", 7, "must say size"),
    "neither constant nor domain": ("  size: 32", "  size: [32]", 14, "constant, or have one of choice"),
    "misspelt domain": ("{choice: [test_resnet,", "{choise: [test_resnet,", 8, "constant, or have one of choice"),
    "empty choice": ("choice: [8, 16]", "choice: []", 10, "at least 1 item"),
    "choice with a value twice": ("choice: [8, 16]", "choice: [8, 8]", 9, "must differ.*8, 8"),
    "range upside down": ("float: [0.0, 1.0]", "float: [1.0, 0.0]", 16, "low < high.*1.0, 0.0"),
    "range of one value": ("float: [0.0, 1.0]", "float: [1.0, 1.0]", 16, "low < high"),
    "range of three": ("float: [0.0, 1.0]", "float: [0.0, 0.5, 1.0]", 16, "at most 2 items"),
    "log range from zero": ("[0.0, 1.0]}", "[0.0, 1.0], log: true}", 16, "log range must be above 0"),
    "log and step": ("[0.0, 1.0]}", "[0.1, 1.0], log: true, step: 0.1}", 16, "log or step, not both"),
    "range outside what a trial takes": ("float: [0.0, 1.0]", "float: [0.0, 2.0]", 16, "less than or equal to 1.*2.0"),
    "boolean for a number": ("  size: 32", "  size: true", 14, "valid integer.*True"),
    "factor elsewhere": ("{float: [0.0, 1.0]}", "{factor: [0.5, 1.0]}", 16, "factor is for lr"),
    "range where the LR finder needs values": ("  size: 32", "  size: {int: [32, 64]}", 14, "constant or a choice"),
    "condition on an unknown parameter": ("if: {backbone:", "if: {bagbone:", 11, "bagbone is none"),
    "condition on an unknown value": ("backbone: test_efficientnet}", "backbone: vgg}", 11, "'vgg' is none"),
    "condition on itself": ("if: {backbone: test_efficientnet}", "if: {batch_size: 8}", 11, "batch_size is none"),
    "case without if": ("- if: {backbone: test_efficientnet}\n        choice", "- choice", 9, "each with `if`"),
    "key twice": ("trials: 3", "trials: 3\ntrials: 4", 4, "duplicate key"),
    "tag": ("  size: 32", "  size: !!python/object:os.system 32", 14, "no tags"),
    "alias": ("trials: 3", "trials: &n 3\nseed: *n", 4, "no aliases"),
    "no YAML": ("trials: 3", "trials: [3", 4, "must be YAML"),
    "name with a path": ("name: small", "name: ../small", 1, "match pattern"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_is_wrong_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    old, new, line, message = WRONG[case]
    assert old in SMALL
    path = write_space(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_space(path)
    assert re.match(rf"{re.escape(str(path))}:{line}: .*{message}", str(caught.value), re.DOTALL), caught.value


def test_a_deep_or_large_or_listed_file_is_refused(tmp_path: Path) -> None:
    for content in ("a: " + "[" * 40 + "]" * 40, "x" * 300_000, "- 1\n- 2\n", ""):
        with pytest.raises(ConfigError):
            load_space(write_space(tmp_path, content))


def test_no_is_text_and_1e_3_a_number(tmp_path: Path) -> None:
    space = load_space(write_space(tmp_path, SMALL.replace("lr: {factor: [0.3, 3.0]}", "lr: 1e-3")))
    assert space.pretrained == "no"
    assert (
        space.draw(optuna.trial.FixedTrial({"backbone": "test_resnet", "batch_size": 8, "augment": 0.5}))["lr"] == 1e-3
    )


def test_a_resolved_space_reads_back_equal(tmp_path: Path) -> None:
    for name in ("quickstart.yaml", "architectures.yaml"):
        space = load_space(find_space(name))
        save_space(space, tmp_path / name)
        assert load_space(tmp_path / name) == space
        assert differences(space, load_space(tmp_path / name)) == []


def test_differences_name_the_value_on_both_sides(tmp_path: Path) -> None:
    old = load_space(write_space(tmp_path))
    new = load_space(write_space(tmp_path, SMALL.replace("epochs: 2", "epochs: 5").replace("[0.0, 1.0]", "[0.0, 0.5]")))
    assert differences(old, new) == [
        "epochs: 2 in the run, 5 asked for",
        "parameters.augment.float: [0.0, 1.0] in the run, [0.0, 0.5] asked for",
    ]


def test_a_shipped_space_is_found_by_name_unless_the_folder_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_space(find_space("architectures.yaml")).trials == 30
    write_space(tmp_path, name="architectures.yaml")
    assert load_space(find_space("architectures.yaml")).trials == 3
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
