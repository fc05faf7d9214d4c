"""Scales, ticks, markup and labels of the plots."""

from __future__ import annotations

import math
import re

import pytest

from rest_deploy.errors import InvariantError
from rest_deploy.report import svg
from rest_deploy.report.markup import Markup, element, number
from rest_deploy.report.svg import Scale


def test_linear_scale() -> None:
    scale = svg.linear([10.0, 100.0], 50, 450)
    assert scale(0) == 50
    assert scale(106.0) == pytest.approx(450)
    assert scale(53.0) == pytest.approx(250)
    assert scale.ticks() == [0, 20, 40, 60, 80, 100]


def test_logarithmic_scale() -> None:
    scale = svg.logarithmic([1e-6, 1e-2], 0, 100, room=10.0)
    assert [round(scale(value)) for value in (1e-7, 1e-4, 1e-1)] == [0, 50, 100]
    assert scale.ticks(7) == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert scale.ticks(3) == pytest.approx([1e-7, 1e-4, 1e-1])


@pytest.mark.parametrize("low", [0.3, 1.0, 7.3, 940.0])
@pytest.mark.parametrize("factor", [1.02, 1.4, 3.0, 40.0, 3e5])
@pytest.mark.parametrize("log", [True, False])
def test_ticks_are_few_and_within(low: float, factor: float, log: bool) -> None:
    scale = Scale(low if log else 0.0, low * factor, 0, 100, log)
    ticks = scale.ticks(6)
    assert len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert all(scale.low <= tick <= scale.high * (1 + 1e-9) for tick in ticks)


def test_what_is_beyond_is_brought_to_the_edge() -> None:
    scale = Scale(1, 10, 0, 90)
    assert (scale(0.1), scale(1e9)) == (0, 90)
    assert Scale(1, 10, 0, 90, log=True)(0.0) == 0


def test_scales_of_equal_values() -> None:
    for scale in (svg.linear([0.0, 0.0], 0, 10), svg.logarithmic([5.0], 0, 10)):
        assert math.isfinite(scale(5.0))
        assert scale.ticks()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_drawn(value: float) -> None:
    for draw in (
        number,
        lambda x: svg.text(x, 0.0, "a"),
        lambda x: svg.polyline([(0, x)], "a"),
        lambda x: svg.line(0, 0, x, 0, "a"),
        lambda x: element("rect", width=x),
    ):
        with pytest.raises(InvariantError, match=str(value)):
            draw(value)


def test_looks_tell_backends_and_precisions_apart() -> None:
    found = svg.looks([("b", "y", "int8"), ("a", "PyTorch", "fp32"), ("c", "y", "fp32"),
                       ("d", "z", "?")])  # fmt: skip
    assert [(look.hue, look.mark) for look in found.values()] == [
        ("h1", "diamond"), ("h0", "circle"), ("h1", "circle"), ("h2", "cross"),
    ]  # fmt: skip
    assert [look.index for look in found.values()] == [0, 1, 2, 3]
    many = svg.looks((str(index), str(index), "fp32") for index in range(7))
    assert [look.hue for look in many.values()] == ["h1", "h2", "h3", "h4", "h5", "h1", "h2"]


BOUNDS = (0.0, 0.0, 400.0, 300.0)


def boxes(labels: list[Markup]) -> list[tuple[float, float, float]]:
    """x of the left end, baseline, width."""
    found = []
    for label in labels:
        x, y = (float(re.search(rf' {name}="([^"]*)"', label)[1]) for name in "xy")  # type: ignore[index]  # there
        words = re.sub("<[^>]*>", "", label)
        wide = svg.CHARACTER * len(words)
        shift = 1.0 if 'anchor="end"' in label else 0.5 if 'anchor="middle"' in label else 0.0
        found.append((x - shift * wide, y, wide))
    return found


def test_labels_do_not_meet() -> None:
    places = [(100 + 3 * index, 100 + 2 * index, f"engine {index}") for index in range(12)]
    found = boxes(svg.labels(places, BOUNDS))
    assert len(found) >= 4
    for index, (x, y, wide) in enumerate(found):
        assert x >= 0
        assert x + wide <= 400
        for x2, y2, wide2 in found[:index]:
            assert x + wide <= x2 or x2 + wide2 <= x or abs(y - y2) >= 13 - 1e-6


def test_labels_keep_off_what_else_is_written() -> None:
    at = [(200.0, 150.0, "name")]
    ((x, _, _),) = boxes(svg.labels(at, BOUNDS))
    assert x > 200
    ((x, _, wide),) = boxes(svg.labels(at, BOUNDS, also=[(200, 100, 200, 100)]))
    assert x + wide <= 200
    assert svg.labels(at, BOUNDS, also=[BOUNDS]) == []


def test_a_figure_is_announced() -> None:
    made = svg.figure("pareto-1", "A title", "What <it> shows", 10, 20)
    assert 'role="img" aria-labelledby="pareto-1-title pareto-1-desc"' in made
    assert '<title id="pareto-1-title">A title</title>' in made
    assert '<desc id="pareto-1-desc">What &lt;it&gt; shows</desc>' in made
