"""What a space file must not say: each error has file, line, value, rule and remedy."""

import re
from pathlib import Path

import pytest
from spaces import SMALL, write_space
from wrong_spaces import WRONG

from ichsearch.errors import ConfigError
from ichsearch.search.space_file import find_space, load_space


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
    with pytest.raises(
        ConfigError, match=r"is a folder; shipped ones: architectures.yaml, paper.yaml, quickstart.yaml"
    ):
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
