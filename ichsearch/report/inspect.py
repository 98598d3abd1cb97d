"""The inspection page: what a folder of shards holds, before anything is trained on it.

In: a folder of shards. Out: `index.html`, which needs no other file and no network, and its pictures beside it as PNG.
"""

from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from ichsearch.errors import ConfigError
from ichsearch.files import write_bytes, write_text
from ichsearch.report.inspect_cohort import Cohort, read_cohort
from ichsearch.report.inspect_page import Section
from ichsearch.report.inspect_sections import all_sections

PAGE: Final = "index.html"
TEMPLATE: Final = "inspect.html.j2"
TITLE: Final = "<title>ichsearch inspect</title>"
"""By it a page of ours is known."""


def write_inspection(shards: Path, out: Path) -> Path:
    """Write the page of a folder of shards and its PNG files into `out`; returns the page's path.

    Raises:
        ConfigError: `out` holds something else than an earlier page.
        DataError: the folder of shards is not complete, or damaged.
    """
    _check_out(out)
    cohort = read_cohort(shards)
    sections = all_sections(cohort)
    write_text(out / PAGE, render(cohort, sections))  # first: by it a folder that was cut short is known again
    for section in sections:
        for picture in section.pictures:
            write_bytes(out / f"{picture.name}.png", picture.png)
    return out / PAGE


def _check_out(out: Path) -> None:
    if not out.exists():
        return
    page = out / PAGE
    if not out.is_dir() or (any(out.iterdir()) and not (page.is_file() and TITLE.encode() in page.read_bytes())):
        raise ConfigError(
            f"the page must go into a folder that is new, empty or holds an earlier page, but {out} does not; "
            "name another with --out"
        )


def render(cohort: Cohort, sections: list[Section]) -> str:
    """The page as HTML; every text in it is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("ichsearch.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(sections=sections, facts=facts(cohort), fingerprint=cohort.manifest.fingerprint)


def facts(cohort: Cohort) -> dict[str, str]:
    """The numbers at the head of the page."""
    counts, settings = cohort.manifest.counts, cohort.manifest.settings
    return {
        "slices": f"{counts.ok:,}",
        "patients": f"{counts.patients:,}",
        "studies": f"{counts.studies:,}",
        "series": f"{counts.series:,}",
        "labelled slices": f"{counts.labelled:,}",
        "shards": f"{len(cohort.manifest.shards):,} at {settings.size} px",
    }
