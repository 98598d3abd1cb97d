"""What the report of a run is made of: sections of sentences, figures, tables and tiles of CT images.

In: texts, drawn charts, rows, PNG bytes. Out: frozen values that the template prints; it escapes every text.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its caption and legend: classes of lines, and what they mean."""

    chart: Markup
    caption: str = ""
    legend: Sequence[tuple[str, str]] = ()
    wide: bool = False
    small: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: what it shows, by what it sorts (None: last), and its classes."""

    shown: str | Markup
    value: float | str | None = None
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; `hint` explains its name."""

    name: str
    hint: str = ""
    words: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; `trial` ties it to the marks of that trial in the charts."""

    cells: Sequence[Cell]
    trial: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names the row; with `sortable` every heading is a button."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sortable: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """A word above or below a CT image; `right` says whether it is true, None where that is not asked."""

    text: str
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """A CT image with words above and below; `overlay` is a second picture of the same slice beside it."""

    png: bytes
    alt: str
    above: Sequence[Label] = ()
    below: Sequence[Label] = ()
    overlay: bytes | None = None

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return data_uri(self.png)

    @property
    def overlay_uri(self) -> str:
        """The second picture as a data URI."""
        return data_uri(self.overlay or b"")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under one heading; `look_for` is its one plain sentence."""

    id: str
    title: str
    look_for: str
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    tiles: Sequence[Tile] = ()
    commands: Sequence[str] = field(default_factory=tuple)


def data_uri(png: bytes) -> str:
    """A picture that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def counted(count: int, noun: str) -> str:
    """A number of things: 1 patient, 1,200 slices."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def number(value: Any, form: str = ".3f") -> Cell:
    """A cell of a number; a dash that sorts last where there is none."""
    missing = value is None or value != value  # noqa: PLR0124 - NaN alone differs from itself
    return Cell("–") if missing else Cell(format(value, form), float(value))


def words(text: Any, style: str = "") -> Cell:
    """A cell of text."""
    shown = "" if text is None or text != text else str(text)  # noqa: PLR0124 - NaN again
    return Cell(shown, shown.lower() or None, style)
