"""The report of a run: one page that needs no other file and no network.

In: a run folder, and its shards if they are at hand. Out: `report.html`.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from shlex import join
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ichsearch import __version__
from ichsearch.data.cache import local_shards
from ichsearch.data.split import Split
from ichsearch.errors import ConfigError, NoTrialFinishedError
from ichsearch.files import read_json, write_text
from ichsearch.report.chart import swatch
from ichsearch.report.page import Section
from ichsearch.report.report_confirm import confirmation
from ichsearch.report.report_facts import failures, provenance
from ichsearch.report.report_images import errors, predictions
from ichsearch.report.report_leaderboard import leaderboard
from ichsearch.report.report_parameters import parameters
from ichsearch.report.report_scores import calibration, confusion, discrimination, scanners
from ichsearch.report.report_search import cost, search
from ichsearch.report.report_training import learning_curves, learning_rates
from ichsearch.report.run_data import RunData
from ichsearch.report.summary import summarise, summary_text
from ichsearch.search.durations import duration_text
from ichsearch.search.run_folder import RunFolder
from ichsearch.shards.manifest import read_manifest

TEMPLATE: Final = "report.html.j2"
STYLE: Final = "report.css"
SCRIPT: Final = "report.js"
SECTIONS: Final[Sequence[Callable[[RunData], Section]]] = (
    leaderboard, confirmation, search, parameters, cost, learning_rates, learning_curves, discrimination, calibration,
    confusion, scanners, predictions, errors, failures,
)  # fmt: skip


def write_report(folder: RunFolder, shards: Path | None, commands: Sequence[str]) -> Path:
    """Draw the report of a run into its folder; returns the page's path.

    Args:
        folder: the run's.
        shards: what it ran on; None leaves out what needs slices, and says so.
        commands: by which it is drawn, beside those that the run has noted itself.

    Raises:
        NoTrialFinishedError: there is nothing to report yet.
    """
    data = RunData(folder, shards)
    if not data.finished:
        raise NoTrialFinishedError("a report needs a finished trial, but the run has none; go on with it")
    verdict = summary_text(summarise(folder, shards)).splitlines()  # the run is ranked before its leaderboard is read
    sections = [*(section(data) for section in SECTIONS), provenance(data, commands)]
    write_text(folder.report, render(data, verdict, sections))
    return folder.report


def drawn_at_the_end(folder: RunFolder, shards: Path | None) -> str:
    """Where the report of a run that has ended is; if it cannot be drawn, why: that must not cost the run's results."""
    try:
        return f"report: {folder.shown(write_report(folder, shards, []))}"
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a picture
        again = join(["ichsearch", "report", str(folder)])
        return f"the report could not be drawn ({type(error).__name__}: {error}); to try again: {again}"


def shards_of(folder: RunFolder, data: str | Path | None) -> Path | None:
    """The shards of a run: those that are named, or its phantom's; None if it has others.

    Raises:
        ConfigError: no run is there, or the shards are not those that it ran on.
        DataError: no shards are there.
    """
    if not (folder.space.is_file() and folder.split.is_file()):
        raise ConfigError(f"RUN must be the folder of a run that has begun, but {folder} is none; name another")
    location = data or folder.phantom_shards
    if location is None:
        return None
    shards = local_shards(location)
    known = Split.model_validate(read_json(folder.split)).fingerprint
    if (found := read_manifest(shards).fingerprint) != known:
        raise ConfigError(
            f"--data must be the shards that the run is on, fingerprint {known[:16]}, but {location} have "
            f"{found[:16]}; name those, or leave --data out"
        )
    return shards


def render(data: RunData, verdict: Sequence[str], sections: Sequence[Section]) -> str:
    """The page of a run; see `render_page`."""
    return render_page(data.space.name, verdict, facts(data), sections)


def render_page(name: str, verdict: Sequence[str], facts: dict[str, str], sections: Sequence[Section]) -> str:
    """The page as HTML; every text in it is escaped, and nothing runs or styles it but what its policy names."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_read(TEMPLATE))
    style, script = _read(STYLE), _read(SCRIPT)
    return template.render(
        name=name,
        verdict=verdict,
        facts=facts,
        sections=sections,
        swatch=swatch,
        style=Markup(style),  # noqa: S704 - files of ours
        script=Markup(script),  # noqa: S704
        policy=policy(style, script),
        version=__version__,
    )


def facts(data: RunData) -> dict[str, str]:
    """The numbers at the head of the page."""
    given = data.predictions
    seconds = sum(trial.result.seconds for trial in data.finished.values())
    return {
        f"best {data.space.told_metric}": f"{data.best.result.score:.3f}",
        "finished trials": f"{len(data.finished):,}",
        "failed": f"{sum(record.status == 'failed' for record in data.failed):,}",
        "time in trials": duration_text(seconds),
        "validation slices": f"{len(given.slices):,}",
        "validation patients": f"{len(given.patients):,}",
    }


def policy(style: str, script: str) -> str:
    """A content security policy that lets pass this style, this script, embedded images, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return files("ichsearch.report").joinpath(name).read_text(encoding="utf-8")
