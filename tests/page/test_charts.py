from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoscale._page.charts import (
    DARK,
    LIGHT,
    Bracket,
    Drawing,
    Reference,
    Series,
    dot_plot,
    histogram,
    line_plot,
    side_by_side,
    style_rules,
)
from twoscale._page.charts.histograms import merged_bars as merged

SVG = "{http://www.w3.org/2000/svg}"


def _texts(drawing: Drawing) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(drawing.inline()).iter(f"{SVG}text")]


def _bars(drawing: Drawing) -> list[tuple[float, float]]:
    """Return right edge and top of every bar, in drawing units."""
    area = next(p for p in ElementTree.fromstring(drawing.inline()).iter(f"{SVG}path") if p.get("class") == "area")
    steps = re.findall(r"V(-?[\d.]+)H(-?[\d.]+)", area.attrib["d"])
    return [(float(right), float(top)) for top, right in steps]


def test_bars_are_as_high_as_their_counts() -> None:
    drawing = histogram("t", [0, 10, 40, 20, 0], -1.0, 1.5, label="l", x_label="x")
    bars = _bars(drawing)
    base = float(re.findall(r"V([\d.]+)Z", drawing.body)[0])
    heights = [base - top for _, top in bars]
    assert len(heights) == 3  # empty bins at the ends are not drawn
    assert heights[1] / heights[0] == pytest.approx(4, rel=0.02)
    assert heights[1] / heights[2] == pytest.approx(2, rel=0.02)


def test_a_logarithmic_axis_gives_each_decade_the_same_height() -> None:
    drawing = histogram("t", [1, 10, 100, 1000], 0, 4, label="l", x_label="x", log=True)
    tops = [top for _, top in _bars(drawing)]
    steps = [a - b for a, b in itertools.pairwise(tops)]
    assert max(steps) - min(steps) < 0.3


@given(st.lists(st.integers(0, 50), min_size=1, max_size=400))
def test_merging_bins_loses_no_value(counts: list[int]) -> None:
    edges, heights = merged(counts, 0.0, 1.0)
    assert sum(heights) == sum(counts)
    assert len(edges) == len(heights) + 1
    widths = [b - a for a, b in itertools.pairwise(edges)]
    assert max(widths) - min(widths) < 1e-9


@pytest.mark.parametrize("counts", [[], [0, 0, 0], [7], [0, 3, 0]])
@pytest.mark.parametrize("ends", [(0.0, 0.0), (-1.0, 1.0), (3.0, 3.0), (1e-30, 1e30)])
@pytest.mark.parametrize("log", [False, True])
def test_degenerate_histograms_are_drawn(counts: list[int], ends: tuple[float, float], log: bool) -> None:
    drawing = histogram("t", counts, *ends, label="l", x_label="x", log=log, brackets=[Bracket("range", *ends)])
    assert "nan" not in drawing.inline()
    assert "inf" not in drawing.inline()
    ElementTree.fromstring(drawing.standalone())


def test_dot_plot_puts_markers_where_the_values_are() -> None:
    drawing = dot_plot("t", ["a", "b"], [Series("one", (10.0, 20.0))], label="l", x_label="x", span=(0.0, 40.0))
    root = ElementTree.fromstring(drawing.inline())
    axis = next(p for p in root.iter(f"{SVG}path") if p.get("class") == "axis")
    start, stop = (float(number) for number in re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", axis.attrib["d"])[0])
    dots = [float(dot.attrib["cx"]) for dot in root.iter(f"{SVG}circle")]
    assert dots == pytest.approx([start + (stop - start) / 4, start + (stop - start) / 2], abs=0.1)


def test_missing_values_have_no_marker() -> None:
    drawing = dot_plot("t", ["a", "b"], [Series("one", (None, 2.0)), Series("two", (None, None))], label="", x_label="")
    marks = re.findall(r'class="mark', drawing.body)
    assert len(marks) == 1 + 2  # one value, two in the legend


def test_a_dot_plot_of_nothing_is_drawn() -> None:
    dots = dot_plot("t", [], [], label="l", x_label="x").inline()
    lines = line_plot("t", [("a", ())], label="l", x_label="x", y_label="y").inline()
    for drawing in (dots, lines):
        assert ElementTree.fromstring(drawing).tag.endswith("svg")


def test_differences_that_mean_nothing_do_not_look_large() -> None:
    drawing = dot_plot("t", ["a"], [Series("s", (54.20,)), Series("t", (54.21,))], label="", x_label="", least_span=2.0)
    circle = float(re.findall(r'<circle class="mark0" cx="([\d.]+)"', drawing.body)[-1])
    square = float(re.findall(r'<rect class="mark1" x="([\d.]+)"', drawing.body)[-1]) + 3.2
    assert abs(circle - square) < 3


def test_references_and_long_names_stay_inside() -> None:
    drawing = dot_plot(
        "t",
        ["a.very.long.layer.name.that.never.ends.conv1", "a.very.long.layer.name.that.never.ends.conv2"],
        [Series("s", (24.0, 31.0))],
        label="",
        x_label="",
        references=[Reference(24, "2²⁴"), Reference(31, "2³¹")],
    )
    names = [text for text in _texts(drawing) if text.startswith("…")]
    assert [name[-5:] for name in names] == ["conv1", "conv2"]
    assert all(len(name) <= 20 for name in names)


def test_text_is_escaped() -> None:
    drawing = histogram("<b>&", [1], 0, 1, label='"><script>', x_label="<i>")
    root = ElementTree.fromstring(drawing.inline())
    assert root.attrib["aria-label"] == '"><script>'
    assert {"<b>&", "<i>"} <= set(_texts(drawing))
    assert "<script>" not in drawing.inline()


def test_a_file_of_its_own_carries_both_palettes_and_no_variables() -> None:
    drawing = histogram("t", [1], 0, 1, label="l", x_label="x")
    both = drawing.standalone()
    assert style_rules(LIGHT) in both
    assert style_rules(DARK) in both
    assert "prefers-color-scheme: dark" in both
    assert "var(" not in both
    assert DARK["first"] not in drawing.standalone(LIGHT)


def test_side_by_side_keeps_every_part() -> None:
    one = histogram("one", [1], 0, 1, label="l", x_label="x")
    two = histogram("two", [1], 0, 1, label="l", x_label="x", height=300)
    both = side_by_side([one, two], "both", gap=10)
    assert (both.width, both.height) == (one.width + two.width + 10, 300)
    assert {"one", "two"} <= set(_texts(both))


def _luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(palette: dict[str, str]) -> None:
    """Text needs 4.5 to 1 (WCAG 2.2, 1.4.3), marks 3 to 1 (1.4.11)."""
    for name, least in (("ink", 4.5), ("muted", 4.5), ("link", 4.5), ("first", 3), ("second", 3), ("third", 3)):
        bright, dark = sorted((_luminance(palette[name]), _luminance(palette["paper"])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= least, name
