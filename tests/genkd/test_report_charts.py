"""Curves keep their spikes, gaps and ends, whatever numbers a log holds."""

from __future__ import annotations

import math
import re

import pytest

from genkd.report_charts import BOTTOM, LEFT, RIGHT, TOP, Chart, charts_of

MIDDLE = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)


def chart_of(*values: float | None, marked_at: tuple[float, ...] = ()) -> Chart:
    events = [{"round": n, "losses": {"kd": value}} for n, value in enumerate(values)]
    (chart,) = charts_of(events, marked_at)["losses"]
    return chart


def points_of(chart: Chart) -> list[tuple[float, float]]:
    found = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", chart.path)
    return [(float(x), float(y)) for x, y in found]


def test_a_curve_runs_from_left_to_right_and_up() -> None:
    chart = chart_of(0.0, 1.0, 2.0)
    assert points_of(chart) == [(LEFT, BOTTOM), MIDDLE, (RIGHT, TOP)]
    assert (chart.first, chart.last, chart.end) == (0.0, 2.0, (RIGHT, TOP))
    assert [label for _, label in chart.y_ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert [label for _, label in chart.x_ticks] == ["0", "2"]


def test_a_value_that_is_missing_leaves_a_gap() -> None:
    chart = chart_of(1.0, 2.0, None, 1.0, math.nan, 2.0)
    assert chart.path.count("M") == 3
    assert chart.missing == 2


def test_a_curve_ends_at_its_last_finite_value() -> None:
    chart = chart_of(1.0, 2.0, None)
    assert chart.last == 2.0
    assert chart.end == ((LEFT + RIGHT) / 2, TOP)


def test_a_curve_without_a_finite_value_is_not_drawn() -> None:
    assert charts_of([{"round": 0, "losses": {"kd": None}}]) == {}


def test_a_spike_in_a_long_curve_is_kept() -> None:
    chart = chart_of(*([0.0] * 3333), 1.0, *([0.0] * 3333), -1.0, *([0.0] * 3333))
    assert len(points_of(chart)) <= 330
    heights = [y for _, y in points_of(chart)]
    assert min(heights) == TOP
    assert max(heights) == BOTTOM
    xs = [x for x, _ in points_of(chart)]
    assert xs == sorted(xs)
    assert len(chart.path) < 6000


def test_values_over_many_decades_are_drawn_on_a_logarithmic_scale() -> None:
    chart = chart_of(1e4, 1e2, 1.0)
    assert chart.logarithmic
    assert [label for _, label in chart.y_ticks] == ["1", "10", "100", "1000", "10000"]
    assert points_of(chart)[1] == MIDDLE


def test_values_down_to_zero_are_not() -> None:
    assert not chart_of(1e4, 0.0).logarithmic


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-9, 1e200, -1e299, 5e-324])
def test_a_constant_is_drawn_within_the_box(value: float) -> None:
    chart = chart_of(value, value)
    assert {y for _, y in points_of(chart)} <= {y / 10 for y in range(TOP * 10, BOTTOM * 10 + 1)}


@pytest.mark.parametrize(
    "values",
    [
        (-1e299, 1e299),
        (1e-300, 1e299),
        (1.0, 1.0 + 1e-12),
        (0.1, 0.3),
        (-7.0, 123456.0),
        (5e-324, 1),
    ],
)
def test_ticks_enclose_the_curve_and_are_few(values: tuple[float, float]) -> None:
    chart = chart_of(*values)
    assert 2 <= len(chart.y_ticks) <= 8
    for _, y in points_of(chart):
        assert TOP <= y <= BOTTOM
    for y, _ in chart.y_ticks:
        assert TOP <= y <= BOTTOM


@pytest.mark.parametrize("hostile", [math.inf, -math.inf, 1e308, 10**400, "text", True, [1], {}])
def test_what_is_no_number_to_draw_is_left_out(hostile: object) -> None:
    events = [{"round": 0, "losses": {"kd": 1.0}}, {"round": 1, "losses": {"kd": hostile}}]
    (chart,) = charts_of(events)["losses"]
    assert LEFT <= chart.end[0] <= RIGHT
    assert TOP <= chart.end[1] <= BOTTOM


def test_one_round_is_a_dot_in_the_middle() -> None:
    chart = chart_of(4.0)
    assert chart.path == f"M{MIDDLE[0]} {MIDDLE[1]}h0"


def test_resumed_rounds_are_marked_where_they_are() -> None:
    chart = chart_of(0.0, 1.0, 2.0, marked_at=(1, 99))
    assert chart.marks == ((LEFT + RIGHT) / 2,)


def test_figures_are_grouped_and_keep_their_order() -> None:
    events = [
        {"event": "round", "round": 0, "seconds": 1.0, "losses": {"b": 1.0, "a": 2.0}, "lone": 3.0},
        {"event": "round", "round": 1, "losses": {"c": {"d": 1.0}}, "phase_seconds": {"x": 1.0}},
    ]
    groups = charts_of(events)
    assert {group: [c.name for c in charts] for group, charts in groups.items()} == {
        "losses": ["b", "a", "c.d"],
        "other": ["lone"],
    }


def test_a_flood_of_names_is_cut_off() -> None:
    events = [{"round": 0, **{f"g{g}": {f"n{n}": 1.0 for n in range(99)} for g in range(99)}}]
    groups = charts_of(events)
    assert len(groups) == 8
    assert {len(charts) for charts in groups.values()} == {30}
