"""Charts as inline SVG, drawn with the page's own colours: they follow light and dark, and stay sharp on a phone.

In: scales and values. Out: `Markup` of an SVG element; every text and every attribute in it is escaped. Colours are
classes, `c0` to `c5`: no style stands in the SVG itself, so that a strict content security policy lets it pass.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from markupsafe import Markup, escape

from ichsearch.report.scales import Scale

WIDTH: Final = 360
"""Pixels on a phone, and the unit of all lengths here."""
HEIGHT: Final = 230
TOP: Final = 8
RIGHT: Final = 10
BOTTOM: Final = 36
LETTER: Final = 6.3
"""Width of a letter of a tick, about."""
SMALL: Final = {"width": 260, "height": 230}
"""For charts of which several stand side by side."""
RADIUS: Final = 3.5
COLOURS: Final = 6
DOT: Final = "dot"
"""A legend's entry with this class is a dot, others are lines."""

Values = Iterable[float]


def element(name: str, content: str = "", **attributes: Any) -> Markup:
    """An SVG or HTML element; `_` in a name is a hyphen, a trailing one is left out; None leaves an attribute out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup(written), content)  # noqa: S704 - escaped above


def joined(parts: Iterable[str]) -> Markup:
    """Elements one after another."""
    return Markup("").join(parts)


def _short(value: Any) -> Any:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


class Chart:
    """One pair of axes and what is drawn on them, in the order of the calls."""

    def __init__(
        self, x: Scale, y: Scale, *, width: int = WIDTH, height: int = HEIGHT, left: int = 0, right: int = RIGHT
    ) -> None:
        self._x, self._y, self._width, self._height, self._right = x, y, width, height, right
        self._left = left or _room_for(y)
        self._parts: list[Markup] = [*self._grid(), *self._labels()]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The point of the SVG where a pair of values lies."""
        wide, high = self._width - self._left - self._right, self._height - TOP - BOTTOM
        return self._left + wide * self._x.share(x), TOP + high * (1 - self._y.share(y))

    def _grid(self) -> Iterable[Markup]:
        (left, bottom), (right, top) = self.place(self._x.low, self._y.low), self.place(self._x.high, self._y.high)
        for value, text in self._y.ticks:
            y = self.place(self._x.low, value)[1]
            yield element("line", class_="grid", x1=left, x2=right, y1=y, y2=y)
            yield element("text", text, x=left - 5, y=y + 3.5, text_anchor="end")
        for value, text in self._x.ticks:
            x = self.place(value, self._y.low)[0]
            yield element("line", class_="grid", x1=x, x2=x, y1=bottom, y2=top)
            yield element("text", text, x=x, y=bottom + 14, text_anchor="middle")
        yield element("path", class_="axis", d=_path([(left, top), (left, bottom), (right, bottom)]))

    def _labels(self) -> Iterable[Markup]:
        if self._x.label:
            x = (self._left + self._width - self._right) / 2
            yield element("text", self._x.label, class_="label", x=x, y=self._height - 5, text_anchor="middle")
        if self._y.label:
            y = (TOP + self._height - BOTTOM) / 2
            turned = f"rotate(-90 11 {y:.1f})"
            yield element("text", self._y.label, class_="label", x=11, y=y, text_anchor="middle", transform=turned)

    def line(self, xs: Values, ys: Values, style: str = "c0", *, title: str = "", trial: str | None = None) -> None:
        """A line through points."""
        points = [self.place(x, y) for x, y in zip(xs, ys, strict=True)]
        if points:
            self._add("path", title, class_=f"line {style}", d=_path(points), data_trial=trial)

    def band(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], style: str = "c0") -> None:
        """The area between two lines."""
        there = [self.place(x, y) for x, y in zip(xs, highs, strict=True)]
        back = [self.place(x, y) for x, y in zip(reversed(xs), reversed(lows), strict=True)]
        if there:
            self._add("path", "", class_=f"band {style}", d=_path([*there, *back]) + "Z")

    def point(
        self,
        x: float,
        y: float,
        style: str = "c0",
        *,
        title: str = "",
        trial: str | None = None,
        radius: float = RADIUS,
    ) -> None:
        """A dot; `title` is shown by whoever points at it."""
        across, down = self.place(x, y)
        self._add("circle", title, class_=f"point {style}", cx=across, cy=down, r=radius, data_trial=trial)

    def whisker(self, low: tuple[float, float], high: tuple[float, float], style: str = "c0") -> None:
        """A thin line from one point to another: an interval."""
        (x1, y1), (x2, y2) = self.place(*low), self.place(*high)
        self._add("line", "", class_=f"whisker {style}", x1=x1, y1=y1, x2=x2, y2=y2)

    def bar(
        self, start: float, end: float, y: float, style: str = "c0", *, thickness: float = 12, title: str = ""
    ) -> None:
        """A horizontal bar from `start` to `end`."""
        (x1, down), (x2, _) = self.place(start, y), self.place(end, y)
        size = {"width": max(x2 - x1, 0.0), "height": thickness}
        self._add("rect", title, class_=f"bar {style}", x=x1, y=down - thickness / 2, **size)

    def column(self, left: float, right: float, bottom: float, top: float, style: str = "c0") -> None:
        """An upright bar."""
        (x1, y1), (x2, y2) = self.place(left, top), self.place(right, bottom)
        self._add("rect", "", class_=f"bar {style}", x=x1, y=y1, width=max(x2 - x1, 0.0), height=max(y2 - y1, 0.0))

    def rule(self, value: float, style: str = "soft", *, title: str = "") -> None:
        """A dashed upright line at a value of x."""
        (x, y1), (_, y2) = self.place(value, self._y.low), self.place(value, self._y.high)
        self._add("line", title, class_=f"rule {style}", x1=x, x2=x, y1=y1, y2=y2)

    def text(
        self, at: tuple[float, float], text: str, *, anchor: str = "start", dx: float = 6, dy: float = 3.5
    ) -> None:
        """A word beside a point, legible on lines."""
        across, down = self.place(*at)
        self._add("text", text, class_="halo", x=across + dx, y=down + dy, text_anchor=anchor)

    def _add(self, name: str, inner: str, **attributes: Any) -> None:
        content = inner if name == "text" or not inner else element("title", inner)
        self._parts.append(element(name, content, **attributes))

    def svg(self, alt: str, style: str = "") -> Markup:
        """The whole chart; `alt` tells what it shows to whoever does not see it."""
        return svg(self._parts, self._width, self._height, alt, f"chart {style}".strip())


def svg(parts: Iterable[Markup], width: int, height: int, alt: str, style: str) -> Markup:
    """An SVG element that is one image to a screen reader."""
    box = f"0 0 {width} {height}"
    return element("svg", joined(parts), class_=style, viewBox=box, width=width, role="img", aria_label=alt)


def _room_for(scale: Scale) -> int:
    """Left of an axis: its ticks, and its label upright."""
    longest = max((len(text) for _, text in scale.ticks), default=0)
    return round(8 + LETTER * longest + (16 if scale.label else 0))


def swatch(style: str) -> Markup:
    """A piece of line, or a dot, for a legend."""
    if DOT in style:
        mark = element("circle", class_=f"point {style}", cx=9, cy=6, r=4)
    else:
        mark = element("line", class_=f"line {style}", x1=1, x2=17, y1=6, y2=6)
    return element("svg", mark, class_="swatch", viewBox="0 0 18 12", aria_hidden="true")


def interval_mark(scale: Scale, low: float, value: float, high: float, rules: Sequence[float] = ()) -> Markup:
    """An interval as it is drawn in a cell of a table: a line with its dot, upright lines at `rules`."""

    def x(at: float) -> float:
        return 4 + 112 * scale.share(at)

    parts = [element("line", class_="rule soft", x1=x(rule), x2=x(rule), y1=0, y2=16) for rule in rules]
    parts += [
        element("line", class_="whisker c0", x1=x(low), x2=x(high), y1=8, y2=8),
        element("circle", class_="point c0", cx=x(value), cy=8, r=3.5),
    ]
    return svg(parts, 120, 16, f"{value:.3f}, from {low:.3f} to {high:.3f}", "interval")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
