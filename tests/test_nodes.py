"""Which nodes trials keep away from, and what a searcher makes of crashes, losses and notices."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from test_searcher import ONE_CORE, hearers, open_book, reasons

from ichsearch.search.nodes import Nodes
from ichsearch.search.resources import Node
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.searcher import BookSearcher

TWO: dict[str, Node] = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}


def nodes_of(live: dict[str, Node], lost: Container[str] = ()) -> Nodes:
    """Of the nodes that Ray takes for alive some are lost."""
    return Nodes(lambda: live, ONE_CORE.least, lambda node: node not in live or node in lost)


def usable(nodes: Nodes) -> set[str]:
    return set(nodes.usable(nodes.live()))


def test_two_configurations_that_crash_speak_against_a_node_and_one_does_not() -> None:
    nodes = nodes_of(TWO)
    assert [nodes.crashed("a", "x") for _ in range(3)] == [False] * 3
    assert usable(nodes) == {"a", "b"}
    assert nodes.crashed("a", "y")
    assert not nodes.crashed("a", "z"), "it is told once"
    assert usable(nodes) == {"b"}


def test_a_trial_that_finishes_speaks_for_its_node() -> None:
    nodes = nodes_of(TWO)
    nodes.crashed("a", "x")
    nodes.finished("a")
    assert not nodes.crashed("a", "y")
    assert nodes.crashed("a", "z")
    nodes.finished("a")  # it ran when the others crashed
    assert usable(nodes) == {"a", "b"}


def test_where_trials_crash_on_all_nodes_no_node_is_to_blame() -> None:
    nodes = nodes_of(TWO)
    for configuration in "xy":
        nodes.crashed("a", configuration)
    assert usable(nodes) == {"b"}
    assert [nodes.crashed("b", configuration) for configuration in "xy"] == [False, False]
    assert usable(nodes) == {"a", "b"}


def test_the_only_node_is_used_whatever_happens_there() -> None:
    nodes = nodes_of({"a": {"CPU": 1.0}, "head": {"CPU": 0.0}})
    nodes.leaves("a")
    assert not any(nodes.crashed("a", configuration) for configuration in "xyz")
    assert "a" in usable(nodes)


def searcher_of(
    root: Path, live: dict[str, Node], max_retries: int, lost: Container[str] = ()
) -> tuple[BookSearcher, dict[str, list[Any]]]:
    told: dict[str, list[Any]] = {"again": [], "avoided": []}
    book, nodes = open_book(root, 8), nodes_of(live, lost)
    return BookSearcher(book, RunFolder(root), ONE_CORE, nodes, hearers(**told), max_retries), told


def start(searcher: BookSearcher, name: str, node: str) -> tuple[str, list[str]]:
    """A trial begins on a node; which one, and which nodes it must not run on."""
    job = searcher.suggest(name)
    assert isinstance(job, dict), job
    searcher.on_place(name, node)
    return job["trial"], job["avoid"]


def test_a_trial_that_was_given_notice_goes_on_elsewhere_at_no_cost(tmp_path: Path) -> None:
    live = dict(TWO)
    searcher, told = searcher_of(tmp_path, live, max_retries=0)
    assert start(searcher, "1", "a") == ("0000", [])
    searcher.on_trial_complete("1", {"reason": "node leaves"})
    assert start(searcher, "2", "b") == ("0000", ["a"])
    assert searcher.suggest("3") is None, "nothing is sent to a node that leaves"
    searcher.on_trial_complete("2", {"reason": "diverged"})
    live.pop("a")
    assert start(searcher, "4", "b") == ("0001", ["a"]), "Ray empties it, but Ray Tune keeps its workers"
    assert told["again"] == [("0000", "node leaves", "a")]
    assert reasons(tmp_path) == {"0000": "diverged", "0001": "running"}


def test_a_node_that_dies_before_its_trial_begins_is_no_crash(tmp_path: Path) -> None:
    searcher, told = searcher_of(tmp_path, TWO, max_retries=0)
    assert searcher.suggest("1")
    searcher.errors["1"] = "The actor died because its node has died. Node Id: 873b"
    searcher.on_trial_complete("1", error=True)
    assert told["again"] == [("0000", "node lost", None)]


def test_the_loss_of_a_node_is_no_crash(tmp_path: Path) -> None:
    live = dict(TWO)
    searcher, told = searcher_of(tmp_path, live, max_retries=0)
    for name, lost in zip("12", ("a", "b"), strict=True):
        start(searcher, name, lost)
        live.pop(lost)
        live[f"instead of {lost}"] = {"CPU": 1.0}
        searcher.on_trial_complete(name, error=True)
    assert start(searcher, "3", "instead of a") == ("0000", [])
    assert told["again"] == [("0000", "node lost", "a"), ("0000", "node lost", "b")]


def test_a_node_that_ray_takes_for_alive_is_lost_when_it_does_not_answer(tmp_path: Path) -> None:
    searcher, told = searcher_of(tmp_path, TWO, max_retries=0, lost={"a"})
    start(searcher, "1", "a")
    searcher.on_trial_complete("1", error=True)
    assert start(searcher, "2", "b") == ("0000", ["a"]), "nothing more is sent there"
    assert told["again"] == [("0000", "node lost", "a")]


def test_a_trial_that_waits_for_a_node_that_has_gone_is_handed_out_anew(tmp_path: Path) -> None:
    live = dict(TWO)
    searcher, told = searcher_of(tmp_path, live, max_retries=1)
    start(searcher, "1", "a")
    searcher.on_trial_complete("1", error=True)
    job = searcher.suggest("2")
    assert isinstance(job, dict)
    assert job["avoid"] == ["a"]
    assert not searcher.is_stuck()
    live.pop("b")
    assert searcher.is_stuck(), "it waits for b, and nobody will tell"
    searcher.hand_back_all()
    assert not searcher.is_stuck()
    assert start(searcher, "3", "a") == ("0000", [])
    assert not searcher.is_stuck()
    assert told["again"] == [("0000", "crashed", "a")]


def test_a_trial_that_crashed_waits_for_another_node_while_others_use_its_place(tmp_path: Path) -> None:
    searcher, told = searcher_of(tmp_path, TWO, max_retries=1)
    start(searcher, "1", "a")
    start(searcher, "2", "b")
    searcher.on_trial_complete("1", error=True)
    assert start(searcher, "3", "a") == ("0002", [])
    searcher.on_trial_complete("2", {"reason": "diverged"})
    assert start(searcher, "4", "b") == ("0000", ["a"])
    searcher.on_trial_complete("4", error=True)
    assert told["again"] == [("0000", "crashed", "a")]
    assert reasons(tmp_path) == {"0000": "crashed", "0001": "diverged", "0002": "running"}
    assert "on node b" in (tmp_path / "trials" / "0000" / "error.txt").read_text()


def test_a_node_where_trials_only_crash_is_avoided_and_does_not_count_against_them(tmp_path: Path) -> None:
    searcher, told = searcher_of(tmp_path, TWO, max_retries=1)
    start(searcher, "busy", "b")
    for name in "12":
        start(searcher, name, "a")
        searcher.on_trial_complete(name, error=True)
    assert told["avoided"] == ["a"]
    assert searcher.suggest("3") is None, "there is room on the node that is avoided only"
    searcher.on_trial_complete("busy", {"reason": "diverged"})
    assert start(searcher, "4", "b") == ("0001", ["a"])
    searcher.on_trial_complete("4", {"reason": "diverged"})
    assert start(searcher, "5", "b") == ("0002", ["a"])
    searcher.on_trial_complete("5", error=True)
    assert told["again"][-1] == ("0002", "crashed", "b"), "its crash on the other node did not count"


def test_on_the_only_node_a_crashed_trial_is_tried_again_at_once(tmp_path: Path) -> None:
    searcher, _ = searcher_of(tmp_path, {"a": {"CPU": 1.0}}, max_retries=1)
    start(searcher, "1", "a")
    searcher.on_trial_complete("1", error=True)
    assert start(searcher, "2", "a") == ("0000", [])
    searcher.on_trial_complete("2", error=True)
    assert reasons(tmp_path) == {"0000": "crashed"}
    assert start(searcher, "3", "a") == ("0001", [])
