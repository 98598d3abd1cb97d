"""Data moves left to right: every import is held against the rooms of the corridor."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "ichsearch"
BENCHMARKS = Path(__file__).parent / "benchmarks"
ROOMS = ("phantom", "dicom", "shards", "data", "model", "train", "search", "report", "deploy")
LEAVES = ("", "labels", "errors", "files", "hard_end", "locations", "patience", "storage", "terminal")
TOP = (
    "cli", "cli_cluster", "cli_console", "cli_counts", "cli_deploy", "cli_events", "cli_exit", "cli_paper",
    "cli_progress", "cli_signals",
)  # fmt: skip
ONLY_IN = {"pydicom": {"dicom", "phantom"}, "optuna": {"search"}, "ray": {"shards", "search"}}


class Import(NamedTuple):
    importer: str
    imported: str
    inside_function: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    return module.partition(".")[0]


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            yield Import(module_name(path), name, id(node) in inside)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}
ALL = [item for path in MODULES.values() for item in imports(path)]
OWN = [
    Import(item.importer, item.imported.removeprefix("ichsearch").removeprefix("."), item.inside_function)
    for item in ALL
    if item.imported.partition(".")[0] == "ichsearch"
]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_file_has_a_room(module: str) -> None:
    assert room(module) in (*ROOMS, *LEAVES, *TOP)


def test_rooms_import_only_rooms_to_their_left_and_leaves() -> None:
    wrong = [
        item
        for item in OWN
        if room(item.importer) in ROOMS
        and room(item.imported) != room(item.importer)
        and room(item.imported) not in LEAVES
        and room(item.imported) not in ROOMS[: ROOMS.index(room(item.importer))]
    ]
    assert not wrong


def test_leaves_import_only_leaves() -> None:
    assert not [item for item in OWN if room(item.importer) in LEAVES and room(item.imported) not in LEAVES]


def test_there_is_no_import_cycle() -> None:
    graph = {module: {item.imported for item in OWN if item.importer == module} for module in MODULES}

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            if (module := todo.pop()) in graph and module not in seen:
                seen.add(module)
                todo += graph[module]
        return seen

    assert not [module for module in MODULES if module in reach(module)]


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_used_only_in_its_rooms(library: str) -> None:
    users = {room(item.importer) for item in ALL if item.imported.partition(".")[0] == library}
    assert users == ONLY_IN[library]


def test_imports_are_hidden_only_in_the_command_line() -> None:
    assert {room(item.importer) for item in ALL if item.inside_function} <= set(TOP)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_what_there_is(path: Path) -> None:
    """They run on demand: without this a renamed function would be missed only then."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ichsearch"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}".removeprefix("ichsearch.")
                assert hasattr(module, alias.name) or submodule in MODULES, f"{node.module}.{alias.name}"


def test_the_checks_see_the_package() -> None:
    assert len(MODULES) > 40
    assert Import("train.trial", "data.cache", False) in OWN
