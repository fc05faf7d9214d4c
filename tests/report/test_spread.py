"""Every request as a dot, and their density."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rest_deploy.report import bench_rows as derived
from rest_deploy.report import spread, svg
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.plots import WIDTH, Looks
from tests.report.hostile import replaced
from tests.report.sample import record

CASE = Case("1x3x224x224")


def looks() -> Looks:
    return svg.looks((e.label, e.backend, e.precision) for e in derived.working(record()))


def test_every_sample_is_a_dot() -> None:
    made = spread.distributions(record(), CASE, looks(), "d")
    assert made is not None
    for row, dots in zip(derived.rows(record(), CASE), re.findall('d="([^"]*h0)"', made),
                         strict=True):  # fmt: skip
        assert dots.count("h0") == row.measured.host.n


def test_no_p99_is_marked_where_there_are_few() -> None:
    for case, tails in ((CASE, 5), (Case("8x3x448x448"), 0)):
        made = spread.distributions(record(), case, looks(), "d")
        assert made is not None
        assert made.count('class="tail"') == tails
        assert made.count('class="median"') == 5
        assert ("p99" in made) == (tails > 0)


def test_thousands_of_samples_are_thinned() -> None:
    many = replaced(record(), "engines.1.measurements.0.samples", tuple(np.linspace(20, 30, 5000)))
    made = spread.distributions(many, CASE, looks(), "d")
    assert made is not None
    assert max(dots.count("h0") for dots in re.findall('d="([^"]*h0)"', made)) <= spread.DRAWN


def test_an_outlier_does_not_squeeze_the_rest() -> None:
    samples = record().engines[1].measurements[0].samples
    wild = replaced(record(), "engines.1.measurements.0.samples", (*samples[:-1], 1e5))
    made = spread.distributions(wild, CASE, looks(), "d")
    assert made is not None
    dots = re.findall('d="([^"]*h0)"', made)[1]
    across = [float(x) for x in re.findall(r"M([\d.]+) ", dots)]
    assert max(across) <= WIDTH
    assert np.percentile(across, 90) - min(across) > 20


def test_density_is_highest_where_the_samples_are() -> None:
    values, heights = spread.density([10.0, 10.1, 10.2, 10.1, 14.0])
    assert 10.0 < values[int(np.argmax(heights))] < 10.2
    assert max(heights) == 1
    assert min(values) > 0


@pytest.mark.parametrize("samples", [[5.0], [5.0] * 50, [5.0] * 49 + [5.1]])
def test_density_of_equal_samples(samples: list[float]) -> None:
    values, heights = spread.density(samples)
    assert np.isfinite([*values, *heights]).all()
