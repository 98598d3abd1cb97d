"""What a space file must not say: each error has file, line, value, rule and remedy."""

import re
from pathlib import Path

import pytest
from spaces import SMALL, write_space

from ichsearch.errors import ConfigError
from ichsearch.search.space_file import find_space, load_space

WRONG = {
    # case: text of the small space, what stands there instead, the line that is named, what is said
    "unknown key": ("epochs: 2", "epoch: 2", 4, "unknown key 'epoch'; did you mean epochs"),
    "unknown key of a section": ("{steps: 20}", "{stepps: 20}", 6, "unknown key 'stepps'; did you mean steps"),
    "key below the parameters": (
        "  size: 32",
        "  size: 32\n  epochs: 3",
        15,
        "it belongs beside `parameters`, not below it",
    ),
    "parameter beside the parameters": ("epochs: 2", "augment: 1", 4, "it belongs below `parameters`"),
    "the schedule's old name": ("  size: 32", "  size: 32\n  schedule: one_cycle", 15, "it is called lr_schedule"),
    "unknown parameter": ("  size: 32", "  sise: 32", 14, "unknown parameter 'sise'; did you mean size"),
    "unknown key of a domain": ("[0.0, 1.0]}", "[0.0, 1.0], lag: true}", 16, "unknown key 'lag'; did you mean log"),
    "wrong type": ("epochs: 2", "epochs: two", 4, "valid integer, but got 'two'; write a whole number"),
    "number in quotes": ("epochs: 2", "epochs: '2'", 4, "valid integer, but got '2'; write a whole number, without"),
    "parameter in quotes": ("  size: 32", "  size: '32'", 14, "valid integer, but got '32'"),
    "truth for a number": ("epochs: 2", "epochs: true", 4, "valid integer, but got True"),
    "half an epoch": ("epochs: 2", "epochs: 2.5", 4, "valid integer, but got 2.5"),
    "yes for true": ("trials: 3", "phantom: {hard: yes}", 3, "valid boolean, but got 'yes'; write true or false"),
    "below its minimum": ("trials: 3", "trials: 0", 3, "greater than or equal to 1, but got 0; raise it"),
    "unknown metric": ("auroc_any", "auroc", 2, "'auroc_any'.* but got 'auroc'; did you mean auroc_any"),
    "metric of another task": ("auroc_any", "auroc_any\ntask: positives", 2, "defined for task positives.*say one of"),
    "text for a list": ("trials: 3", "first_trials: resnet18", 3, "valid list, but got 'resnet18'; write a list"),
    "text for a section": ("trials: 3", "keep: 5", 3, "Keep, but got 5; write keys and values"),
    "null": ("trials: 3", "trials:", 3, "but got null; give a value, or remove the key"),
    "null parameter": ("  size: 32", "  size: null", 14, "must be a constant.*but got null"),
    "null in a choice": ("[8, 16]", "[8, null]", 10, "must be a number, text, true or false, but got null"),
    "unknown backbone": ("choice: [test_resnet,", "choice: [resnet81,", 8, "'resnet81'.*did you mean resnet18"),
    "backbone that needs larger images": ("choice: [test_resnet,", "choice: [alexnet,", 8, "at least 63 px.*32"),
    "missing parameter": ("  size: 32\n", "", 7, "must say size"),
    "missing name": ("name: small\n", "", None, "name must be given, but is missing; add it"),
    "neither constant nor domain": ("  size: 32", "  size: [32]", 14, "constant, or have one of choice"),
    "misspelt domain": ("{choice: [test_resnet,", "{choise: [test_resnet,", 8, "constant, or have one of choice"),
    "code": ("  size: 32", '  size: {"eval": "__import__(\'os\').abort()"}', 14, "constant, or have one of choice"),
    "code for a section": ("{steps: 20}", '{"eval": "1/0"}', 6, "unknown key 'eval'; known: steps"),
    "empty choice": ("choice: [8, 16]", "choice: []", 10, "at least 1 item.*but got \\[\\]; write at least one"),
    "choice with a value twice": ("choice: [8, 16]", "choice: [8, 8]", 9, "must differ.*8, 8"),
    "range upside down": ("float: [0.0, 1.0]", "float: [1.0, 0.0]", 16, "low < high.*1.0, 0.0"),
    "range of one value": ("float: [0.0, 1.0]", "float: [1.0, 1.0]", 16, "low < high"),
    "range of three": ("float: [0.0, 1.0]", "float: [0.0, 0.5, 1.0]", 16, "at most 2 items.*write two values"),
    "log range from zero": ("[0.0, 1.0]}", "[0.0, 1.0], log: true}", 16, "log range must be above 0"),
    "log and step": ("[0.0, 1.0]}", "[0.1, 1.0], log: true, step: 0.1}", 16, "log or step, not both"),
    "steps beside high": ("[0.0, 1.0]}", "[0.0, 1.0], step: 0.3}", 16, "steps of 0.3 from 0.0 miss 1.0.*high as 0.9"),
    "range outside what a trial takes": ("float: [0.0, 1.0]", "float: [0.0, 2.0]", 16, "less than or equal to 1.*2.0"),
    "boolean for a parameter": ("  size: 32", "  size: true", 14, "valid integer.*True"),
    "factor elsewhere": ("{float: [0.0, 1.0]}", "{factor: [0.5, 1.0]}", 16, "factor is for lr"),
    "factor out of bounds": ("[0.3, 3.0]", "[0.3, 300]", 17, "within \\[0.01, 99.0\\], but got 300"),
    "factor of text": ("[0.3, 3.0]", "high", 17, "must be a number, a range.*but got 'high'"),
    "range where the LR finder needs values": ("  size: 32", "  size: {int: [32, 64]}", 14, "constant or a choice"),
    "condition on an unknown parameter": ("if: {backbone:", "if: {bagbone:", 12, "'bagbone'; did you mean backbone"),
    "condition on an unknown value": ("backbone: test_efficientnet}", "backbone: vgg}", 12, "'vgg' is no value of"),
    "condition on no match": ("backbone: test_eff", "backbone: vgg*}\n# ", 12, "'vgg\\*' is no value of"),
    "condition on itself": ("if: {backbone: test_efficientnet}", "if: {batch_size: 8}", 12, "batch_size is itself"),
    "condition on an unknown task": ("{backbone: test_efficientnet}", "{task: two}", 12, "must be one of any.*'two'"),
    "condition on a continuous range": ("{backbone: test_efficientnet}", "{augment: 0.5}", 12, "continuous range.*0.5"),
    "condition on a conditional parameter": (
        "  channels: hu",
        "  channels: {choice: [hu, windows], when: [{if: {batch_size: 8}, choice: [hu]}]}",
        15,
        "without conditions, but batch_size has some",
    ),
    "condition that is met before": (
        "        choice: [8]",
        "        choice: [8]\n      - if: {backbone: test_efficientnet}\n        value: 16",
        14,
        "`if` of an earlier one",
    ),
    "case without if": ("- if: {backbone: test_efficientnet}\n        choice", "- choice", 9, "each with `if`"),
    "case without domain": ("        choice: [8]\n", "        chois: [8]\n", 12, "a case must have one of choice"),
    "removed without default": ("        choice: [8]\n", "        remove: true\n", 12, "batch_size has no default"),
    "removed without condition": ("  channels: hu", "  channels: {remove: true}", 15, "have one of choice"),
    "parameter that never counts": ("  channels: hu", "  lr_spread: 10", 15, "only where lr_schedule is fine_tune"),
    "kinds without strength": ("{float: [0.0, 1.0]}", "0\n  augmentations: flip", 17, "only where augment is above 0"),
    "fine-tuning from scratch": ("  channels: hu", "  lr_schedule: fine_tune", 15, "pretrained is no; say auto"),
    "duration": ("epochs: 2", "time: 8 hours", 4, "a number with s, m, h or d behind it.*'8 hours'"),
    "duration below zero": ("epochs: 2", "time: -3", 4, "greater than 0, but got -3; raise it"),
    "trial without time": ("epochs: 2", "trial_limit: 0s", 4, "greater than 0"),
    "eta": ("epochs: 2", "promotion: {eta: 1}", 4, "greater than or equal to 2, but got 1"),
    "first rung": ("epochs: 2", "epochs: 2\npromotion: {first_epochs: 3}", 5, "has 3 of 2 epochs; lower it"),
    "neither number nor auto": (
        "epochs: 2",
        "promotion: {first_epochs: atuo}",
        4,
        "valid integer or 'auto', but got 'atuo'",
    ),
    "grid of a range": ("epochs: 2", "strategy: grid", 16, "grid needs finite parameters, but augment is continuous"),
    "grid of factors": (
        "  augment: {float: [0.0, 1.0]}\n  lr: {factor: [0.3, 3.0]}",
        "  lr: {factor: [0.3, 3.0]}\nstrategy: grid",
        16,
        "lr is continuous; write {factor: {choice",
    ),
    "no parameters at all": ("trials: 3", "constraints: {max_parameters: 0}", 3, "greater than or equal to 1"),
    "constraint that leaves nothing": (
        "trials: 3",
        "constraints: {max_parameters: 1e3}",
        3,
        "leave a backbone, but of test_resnet, test_efficientnet none.*max_parameters 1,000: test_resnet has",
    ),
    "forbidden everything": ("trials: 3", "constraints: {forbidden: [{size: 32}]}", 3, "none is left.*size 32"),
    "forbidden nothing": ("trials: 3", "constraints: {forbidden: [{}]}", 3, "at least 1 item"),
    "forbidden what cannot be": ("trials: 3", "constraints: {forbidden: [{batch_size: 9}]}", 3, "9 is no value of"),
    "forbidden unknown": ("trials: 3", "constraints: {forbidden: [{batch: 9}]}", 3, "'batch'; did you mean batch_size"),
    "first trial outside": ("trials: 3", "first_trials: [{batch_size: 9}]", 3, "cannot propose batch_size 9"),
    "first trial with a rate": ("trials: 3", "first_trials: [{lr: 1e-3}]", 3, "cannot propose lr 0.001.*a factor"),
    "first trial against a condition": (
        "trials: 3",
        "first_trials:\n  - {backbone: test_resnet}\n  - {backbone: test_efficientnet, batch_size: 16}",
        5,
        "no configuration of the space has .* at once",
    ),
    "first trial that is forbidden": (
        "trials: 3",
        "first_trials: [{batch_size: 16}]\nconstraints: {forbidden: [{batch_size: 16}]}",
        3,
        "no configuration of the space has",
    ),
    "pattern without match": ("choice: [test_resnet,", "choice: [resnot*,", 8, "'resnot\\*' matches none; correct it"),
    "pattern of hundreds": ("choice: [test_resnet,", "choice: ['*net*',", 8, "at most 100 backbones.* matches \\d{3}"),
    "pattern of misfits": ("choice: [test_resnet,", "choice: [alexne*,", 8, "can be trained, but none of the 1 that"),
    "key twice": ("trials: 3", "trials: 3\ntrials: 4", 4, "duplicate key \"trials\""),
    "tag": ("  size: 32", "  size: !!python/object:os.system 32", 14, "no tags.*os.system is one; remove it"),
    "alias": ("trials: 3", "trials: &n 3\nseed: *n", 4, "no aliases, but \\*n is one; write it out"),
    "alias bomb": ("trials: 3", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", 4, "no aliases"),
    "merge key": ("trials: 3", "<<: {trials: 3}", 3, "a key must be text, but '<<' is none"),
    "key that is a number": ("trials: 3", "3: trials", 3, "a key must be text, but '3' is none"),
    "key that is a list": ("trials: 3", "? [a, b]\n: 3", 3, "a key must be text, but a list or a mapping is none"),
    "no number": ("trials: 3", "device_hours: .nan", 3, "must be finite, but got '.nan'"),
    "infinite": ("trials: 3", "device_hours: -.inf", 3, "must be finite, but got '-.inf'"),
    "beyond floats": ("trials: 3", "device_hours: 1e999", 3, "must be finite, but got '1e999'"),
    "huge": ("trials: 3", f"trials: {10**25}", 3, "less than or equal to 100000, but got 1000000000"),
    "thousands of digits": ("trials: 3", "trials: " + "9" * 5000, 3, "at most 30 digits.*has 5000"),
    "date": ("name: small", "name: 2026-01-01", 1, "'2026-01-01' is a timestamp; put it in quotes"),
    "control character": ("name: small", 'name: "a\\u001b[31m"', 1, "must be printable"),
    "half a character": ("trials: 3", 'weights_folder: "\\uD800"', 3, "must be printable"),
    "other YAML": ("name: small", "%YAML 1.1\n---\nname: small", 2, "without directives"),
    "two documents": ("trials: 3", "---\ntrials: 3", 3, "found another document"),
    "no YAML": ("trials: 3", "trials: [3", 4, "must be YAML 1.2"),
    "deep": ("trials: 3", "trials: " + "[" * 5000 + "]" * 5000, 3, "nested at most 12 deep"),
    "name with a path": ("name: small", "name: ../small", 1, "match pattern.*but got '../small'; use letters"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_is_wrong_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    old, new, line, message = WRONG[case]
    assert old in SMALL
    path = write_space(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_space(path)
    told = str(caught.value)
    place = rf":{line}" if line else r"(:\d+)?"
    assert re.match(rf"{re.escape(str(path))}{place}: .*{message}", told, re.DOTALL), told
    assert "Input should" not in told
    assert max(map(len, told.splitlines())) < 700


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = write_space(tmp_path, SMALL.replace("epochs: 2", "epochs: two").replace("trials: 3", "trails: 3"))
    with pytest.raises(ConfigError) as caught:
        load_space(path)
    assert [line.split(": ")[0] for line in sorted(str(caught.value).splitlines())] == [f"{path}:3", f"{path}:4"]


NO_SPACES = {
    "empty": (b"", ":1: .* maps names to values, but this one is empty; begin with"),
    "only a comment": (b"# nothing\n", ":1: .* this one is empty"),
    "a list": (b"- 1\n- 2\n", ":1: .* holds a list"),
    "a text": (b"name\n", ":1: .* holds a str"),
    "Latin-1": ("name: small\n# über\n".encode("latin-1"), ":2: a space file is UTF-8 text, but this is none; save it"),
    "UTF-16": ("name: small".encode("utf-16"), ":1: a space file is UTF-8 text"),
    "binary": (bytes(range(256)), ":"),
    "a null byte": (b"name: a\0\n", ":1: the text must be YAML 1.2, but unacceptable character #x0000"),
    "2 MB": (b"#" * 2 * 2**20, ": a space file has at most 262,144 bytes, but this one has 2,097,152; shorten it"),
}


@pytest.mark.parametrize("case", sorted(NO_SPACES))
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, case: str) -> None:
    content, message = NO_SPACES[case]
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_space(path)
    assert re.match(re.escape(str(path)) + message, str(caught.value)), caught.value


def test_a_folder_or_nothing_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a file, but .* is a folder"):
        load_space(tmp_path)
    with pytest.raises(ConfigError, match=r"is a folder; shipped ones: architectures.yaml, quickstart.yaml"):
        find_space(str(tmp_path))
    with pytest.raises(ConfigError, match="is none; give the path"):
        load_space(tmp_path / "missing.yaml")


def test_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    plain = load_space(write_space(tmp_path))
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_space(path) == plain


OPTIONS = {
    "epochs": "-o epochs: an option must be key=value",
    "=3": "-o =3: an option must be key=value",
    ".epochs=3": "-o .epochs=3: an option must be key=value",
    "epochs=": "-o epochs=: epochs: must be a valid integer, but got null; give a value",
    "epochs=two": "-o epochs=two: epochs: must be a valid integer, but got 'two'",
    "epochs=[1": "-o epochs=[1:1: the text must be YAML 1.2",
    "epochs=!!int 3": "-o epochs=!!int 3:1: a space file has no tags",
    "epoch=3": "-o epoch=3: epoch: unknown key 'epoch'; did you mean epochs",
    "promotion.etta=2": "-o promotion.etta=2: promotion.etta: unknown key 'etta'; did you mean eta",
    "parameters.sise=2": "-o parameters.sise=2: parameters.sise: unknown parameter 'sise'; did you mean size",
    "parameters.size.choice=[32, 64]": "-o parameters.size.choice=[32, 64]: parameters.size must have keys.*but is 32; "
    "give it as a whole: -o 'parameters.size={choice: ...}'",
    "parameters.backbone=vgg*x": "-o parameters.backbone=vgg*x: parameters.backbone: .*matches none",
}


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_a_wrong_option_is_named_instead_of_a_line(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(write_space(tmp_path), [option])
    assert re.match(OPTIONS[option].replace("[", r"\[").replace("*x", r"\*x"), str(caught.value)), caught.value
