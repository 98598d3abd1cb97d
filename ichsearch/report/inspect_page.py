"""What the inspection page is made of: sections of plain texts, tables and pictures.

In: texts, rows and PNG bytes. Out: frozen values that the template prints.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NO_LABELS: Final = (
    "Missing: no slice of this cohort has labels. `ichsearch preprocess DICOM_DIR --labels FILE` takes them from a CSV."
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One PNG of the page; `photo` says that it is CT images on black rather than a chart."""

    name: str
    alt: str
    png: bytes
    caption: str = ""
    photo: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts; the first column names the row, the others are numbers unless `words` says so."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under one heading; `look_for` is its one plain sentence."""

    id: str
    title: str
    look_for: str
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def percent(part: float, whole: float) -> str:
    """A share as text; a dash where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "–"
