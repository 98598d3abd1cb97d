"""Charts: scales with round ticks, marks where their values lie, and no text that could become markup."""

import xml.etree.ElementTree as ET

import pytest

from ichsearch.report.chart import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH, Chart, interval_mark, swatch
from ichsearch.report.scales import Scale, categories, fitting, linear, logarithmic

CANARY = '<script>alert("canary")</script>"\' onload="alert(1)'


def parsed(markup: str) -> ET.Element:
    return ET.fromstring(markup)  # noqa: S314 - what we have just drawn


def texts(scale: Scale) -> list[str]:
    return [text for _, text in scale.ticks]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.43, 0.917], ["0.4", "0.6", "0.8", "1.0"]),
        ([0, 4700], ["0", "2,000", "4,000", "6,000"]),
        ([-0.012, 0.011], ["-0.02", "-0.01", "0.00", "0.01", "0.02"]),
        ([3, 3], ["2.6", "2.8", "3.0", "3.2", "3.4"]),
        ([0, 9], ["0.0", "2.5", "5.0", "7.5", "10.0"]),
    ],
)
def test_linear_ticks_are_round_and_hold_the_values(values: list[float], expected: list[str]) -> None:
    scale = linear(values)
    assert texts(scale) == expected
    assert scale.low <= min(values) <= max(values) <= scale.high


def test_given_ends_stay() -> None:
    scale = linear([0.2, 0.7], low=0, high=1)
    assert (scale.low, scale.high) == (0, 1)
    assert texts(scale) == ["0.00", "0.25", "0.50", "0.75", "1.00"]


def test_log_ticks_are_powers_of_ten_or_between_them_where_there_are_few() -> None:
    assert texts(logarithmic([1e-7, 10])) == ["1e-06", "0.0001", "0.01", "1"]
    assert texts(logarithmic([4, 90])) == ["5", "10", "20", "50", "100"]
    assert texts(logarithmic([13.1])) == ["13"]


def test_shares_are_linear_or_logarithmic_and_held_at_the_ends() -> None:
    assert linear([0, 10], low=0, high=10).share(2.5) == pytest.approx(0.25)
    log = Scale(1, 100, [], log=True)
    assert log.share(10) == pytest.approx(0.5)
    assert [log.share(value) for value in (0, 0.1, 1e9)] == [0, 0, 1]
    names = categories(["a", "b"])
    assert [names.share(place) for place, _ in names.ticks] == [0.25, 0.75]


def test_numbers_that_differ_by_much_get_a_log_scale() -> None:
    assert fitting([0.001, 0.1]).log
    assert not fitting([0.001, 0.002]).log
    assert not fitting([0.0, 0.1]).log


def test_a_scale_of_nothing_is_drawn_too() -> None:
    assert linear([]).ticks
    assert logarithmic([0.0, float("inf")]).ticks
    assert "<svg" in Chart(linear([]), logarithmic([])).svg("empty")


def test_marks_stand_where_their_values_lie() -> None:
    chart = Chart(linear([], low=0, high=1), linear([], low=0, high=1), left=40)
    chart.point(0, 0)
    chart.point(1, 1)
    dots = [dot.attrib for dot in parsed(chart.svg("two points")) if dot.tag == "circle"]
    assert [(float(dot["cx"]), float(dot["cy"])) for dot in dots] == [
        (40, HEIGHT - BOTTOM),
        (WIDTH - RIGHT, TOP),
    ]


def test_long_ticks_get_the_room_they_need() -> None:
    def first_grid_line(y: Scale) -> float:
        lines = [part.attrib for part in parsed(Chart(linear([0, 1]), y).svg("a grid")) if part.tag == "line"]
        return float(lines[0]["x1"])

    assert first_grid_line(categories(["test_efficientnet"])) > 17 * 6 > first_grid_line(linear([0, 1], "score"))


def test_texts_and_attributes_are_escaped() -> None:
    chart = Chart(linear([], CANARY, low=0, high=1), categories([CANARY], CANARY))
    chart.point(0, 0, title=CANARY, trial=CANARY)
    chart.line([0, 1], [0, 0], title=CANARY, trial=CANARY)
    chart.text((0, 0), CANARY)
    drawn = chart.svg(CANARY)
    assert "<script" not in drawn
    root = parsed(drawn)  # so every quote is escaped, too
    assert root.attrib["aria-label"] == CANARY
    assert [title.text for title in root.iter("title")] == [CANARY] * 2
    assert {name for part in root.iter() for name in part.attrib if name.startswith("on")} == set()


def test_a_chart_has_no_style_of_its_own() -> None:
    chart = Chart(linear([0, 1]), linear([0, 1]))
    chart.band([0, 1], [0, 0], [1, 1])
    chart.bar(0, 1, 0.5)
    chart.rule(0.5)
    chart.whisker((0, 0), (1, 1))
    chart.column(0, 1, 0, 1)
    drawn = chart.svg("all kinds") + swatch("c0") + swatch("c0 dot")
    assert "style=" not in drawn
    assert "fill=" not in drawn


def test_a_drawn_interval_says_its_numbers() -> None:
    mark = parsed(interval_mark(linear([0, 1]), 0.25, 0.5, 0.75, rules=[0.5]))
    assert mark.attrib["aria-label"] == "0.500, from 0.250 to 0.750"
    line = next(part.attrib for part in mark if part.attrib["class"].startswith("whisker"))
    assert (float(line["x1"]), float(line["x2"])) == (32, 88)
