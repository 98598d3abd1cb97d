"""The report in a real browser: it sorts, stays silent, asks for nothing, holds evil text still, and is quick."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from books import make_space
from browser import Browser, browser
from runs import multiply, write_cohort_shards, write_run

from ichsearch.files import read_json, write_json
from ichsearch.report import bootstrap
from ichsearch.report.provenance import note_command
from ichsearch.report.report import write_report
from ichsearch.search.openings import note_opening
from ichsearch.search.run_folder import RunFolder

EVIL = "<script>window.canary=1</script><img src=x onerror='window.canary=2'>\"'--><svg onload=window.canary=3>{{7*7}}"
LEADERBOARD = "document.querySelector('#leaderboard table')"
MOST_MB, MOST_S = 15, 2.0


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """What is tested here are pages, not intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as tab:
        yield tab


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort_shards(tmp_path_factory.mktemp("browser") / "shards", names=EVIL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> RunFolder:
    """A run with evil text wherever text can be."""
    folder = write_run(
        tmp_path_factory.mktemp("browser") / "run", shards, make_space(trials=20, sampler="random"), reason=EVIL
    )
    for record in folder.records():
        path = folder.trial(record.trial) / "trial.json"
        content = read_json(path)
        content["weights"] = EVIL
        content["parameters"] |= {EVIL: record.trial}
        if record.trial in ("0000", "0008"):  # one that has a score, one that has failed
            content["config"]["backbone"] = EVIL
        write_json(path, content)
    spoil(folder.split, lambda split: split["unreliable"].update({EVIL: 1}))
    for path in folder.lr_finder.glob("*.json"):
        spoil(path, lambda curve: curve["suggestions"].update({EVIL: 1e-3}))
    spoil(next(folder.lr_finder.glob("*.json")), lambda curve: curve.update(failure=EVIL))
    note_command(folder, ["ichsearch", "run", EVIL])
    note_opening(folder, ["ichsearch", "confirm", EVIL], [EVIL])
    spoil_environment(folder)
    write_report(folder, shards, [EVIL])
    return folder


def spoil(path: Path, change: Any) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def spoil_environment(folder: RunFolder) -> None:
    entry = json.loads(folder.commands.read_text()) | {"machine": EVIL, "gpus": [EVIL]}
    folder.commands.write_text(json.dumps(entry) + "\n")


@pytest.fixture
def page(chromium: Browser, folder: RunFolder) -> Browser:
    chromium.look(1280)
    chromium.open(folder.report)
    return chromium


def column(tab: Browser, number: int) -> list[str]:
    shown: list[str] = tab.ask(f"[...{LEADERBOARD}.tBodies[0].rows].map(row => row.cells[{number}].textContent)")
    return shown


def head(number: int) -> str:
    return f"{LEADERBOARD}.tHead.rows[0].cells[{number}]"


def test_no_evil_text_comes_alive_and_nothing_complains_or_asks(page: Browser) -> None:
    text = page.ask("document.body.textContent")
    assert text.count(EVIL) > 20, "the canaries are not on the page"
    assert page.ask("window.canary") is None
    assert page.ask("document.querySelectorAll('script').length") == 1
    assert page.ask("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert page.ask("[...document.querySelectorAll('*')].every(one => !one.onload && !one.onerror)")
    assert page.complaints() == []
    assert page.requests() == []


def test_the_policy_stops_what_would_come_alive(page: Browser) -> None:
    page.ask(
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.canary=1\">'),"
        "(one => (one.textContent = 'window.canary=2', document.body.append(one)))(document.createElement('script'))"
    )
    asked = page.ask("fetch('data:,x').then(() => 'let through', () => 'stopped')")
    assert asked == "stopped"
    assert page.ask("window.canary") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints())


def test_a_heading_sorts_and_again_the_other_way(page: Browser) -> None:
    scores = [float(shown) for shown in column(page, 3)]
    assert scores == sorted(scores, reverse=True)
    page.ask(f"{head(3)}.firstElementChild.click()")
    assert [float(shown) for shown in column(page, 3)] == sorted(scores)
    assert page.ask(f"{head(3)}.getAttribute('aria-sort')") == "ascending"
    page.ask(f"{head(3)}.firstElementChild.click()")
    assert [float(shown) for shown in column(page, 3)] == sorted(scores, reverse=True)
    assert page.ask(f"{head(3)}.getAttribute('aria-sort')") == "descending"


@pytest.mark.parametrize("clicks", [1, 2])
def test_what_is_missing_comes_last_either_way(page: Browser, clicks: int) -> None:
    for _ in range(clicks):
        page.ask(f"{head(1)}.firstElementChild.click()")
    ranks = column(page, 1)
    assert ranks.count("–") == 4  # the rules that see no image
    assert ranks[-4:] == ["–"] * 4
    known = [int(rank) for rank in ranks[:-4]]
    assert known == sorted(known, reverse=clicks == 2)


def test_words_sort_as_words_and_rows_stay_whole(page: Browser) -> None:
    before = dict(zip(column(page, 0), column(page, 3), strict=True))
    page.ask(f"{head(0)}.firstElementChild.click()")
    names = column(page, 0)
    assert names == sorted(names)
    assert dict(zip(names, column(page, 3), strict=True)) == before


@pytest.mark.parametrize(("key", "code", "text"), [("Enter", 13, "\r"), (" ", 32, " ")])
def test_the_keyboard_reaches_a_heading_and_sorts(page: Browser, key: str, code: int, text: str) -> None:
    page.ask(f"{LEADERBOARD}.parentElement.focus()")
    for _ in range(4):
        page.press("Tab", 9)
    assert page.ask("document.activeElement.textContent") == "score"
    page.press(key, code, text)
    scores = [float(shown) for shown in column(page, 3)]
    assert scores == sorted(scores)


def test_pointing_at_a_trial_lights_up_its_marks(page: Browser) -> None:
    trial = page.ask("document.querySelector('tr[data-trial]').dataset.trial")
    page.ask("document.querySelector('tr[data-trial]').dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))")
    lit = page.ask("[...document.querySelectorAll('.lit')].map(one => one.dataset.trial)")
    assert len(lit) > 4
    assert set(lit) == {trial}
    page.ask("document.querySelector('h1').dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))")
    assert page.ask("document.querySelectorAll('.lit').length") == 0


@pytest.mark.parametrize("width", [375, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_no_page_is_wider_than_its_window(chromium: Browser, folder: RunFolder, width: int, dark: bool) -> None:
    chromium.look(width, dark=dark)
    chromium.open(folder.report)
    assert chromium.ask("document.documentElement.scrollWidth <= window.innerWidth")
    assert chromium.ask(
        "[...document.querySelectorAll('svg.chart')].every(one => one.getBoundingClientRect().width > 200)"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(chromium: Browser, folder: RunFolder, dark: bool) -> None:
    chromium.look(1280, dark=dark)
    chromium.open(folder.report)
    for selector in ("h1", ".clinical", ".look", "nav a", "tr.tied td", "tr.baseline td", ".good", ".bad", "svg text"):
        assert contrast(chromium, selector) >= 4.5, selector


def contrast(tab: Browser, selector: str) -> float:
    """The WCAG contrast of an element's text with the ground below it."""
    script = """(selector => {
      const parts = text => text.match(/[0-9.]+/g).map(Number);
      const light = ([r, g, b]) => [[r, .2126], [g, .7152], [b, .0722]].reduce((sum, [value, weight]) =>
        sum + weight * (value <= 10.31 ? value / 255 / 12.92 : ((value / 255 + .055) / 1.055) ** 2.4), 0);
      const one = document.querySelector(selector);
      let below = one;
      while (below && (parts(getComputedStyle(below).backgroundColor)[3] ?? 1) === 0) below = below.parentElement;
      const style = getComputedStyle(one);
      const pair = [one.ownerSVGElement ? style.fill : style.color, getComputedStyle(below).backgroundColor];
      const [first, second] = pair.map(text => light(parts(text))).sort((a, b) => b - a);
      return (first + .05) / (second + .05);
    })"""
    value: float = tab.ask(f"{script}({json.dumps(selector)})")
    return value


def test_five_hundred_trials_are_quick_and_small(chromium: Browser, folder: RunFolder, shards: Path) -> None:
    multiply(folder, 500)
    write_report(folder, shards, [])
    assert folder.report.stat().st_size < MOST_MB * 1e6
    chromium.look(1280)
    seconds = min(chromium.open(folder.report) for _ in range(3))  # other work beside it is not the page's
    assert len(column(chromium, 0)) > 440
    sorting_ms = chromium.ask(
        f"(() => {{ const start = performance.now(); {head(3)}.firstElementChild.click(); "
        f"{LEADERBOARD}.getBoundingClientRect(); return performance.now() - start; }})()"
    )
    scores = [float(shown) for shown in column(chromium, 3)]
    assert scores == sorted(scores)
    assert chromium.complaints() == []
    assert seconds + sorting_ms / 1000 < MOST_S
