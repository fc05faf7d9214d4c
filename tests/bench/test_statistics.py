"""Spread, outliers, intervals and verdicts, on numbers whose answers are known."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.bench import statistics as st


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [(100, 99, 98), (99, 99, 98), (1000, 99, 989), (200, 95, 189), (10, 90, 8), (9, 90, 8),
     (1, 99, 0), (7, 100, 6)],
)  # fmt: skip
def test_percentile_is_trtexecs(count: int, percent: float, rank: int) -> None:
    """sorted[max(N - 1 - int((1 - p / 100) * N), 0)] of sampleReporting.cpp."""
    assert st.percentile(list(range(count)), percent) == rank


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_percentile_refuses(percent: float) -> None:
    with pytest.raises(ValueError, match="percentage"):
        st.percentile([1.0], percent)


@pytest.mark.parametrize(("percent", "count"), [(90, 10), (95, 20), (99, 100)])
def test_needed(percent: float, count: int) -> None:
    """From there on the percentile is below the maximum, and not one earlier."""
    assert st.needed(percent) == count
    assert st.percentile(list(range(count)), percent) < count - 1
    assert st.percentile(list(range(count - 1)), percent) == count - 2


def test_spread() -> None:
    found = st.spread([3.0, 1.0, 2.0, 10.0])
    assert (found.n, found.min, found.max, found.mean, found.median) == (4, 1, 10, 4, 2.5)
    assert (found.p90, found.p99) == (10, 10)
    assert found.cov == pytest.approx(np.std([3, 1, 2, 10]) / 4)
    assert st.spread([0.0, 0.0]).cov == 0


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], [-1.0], [[1.0]]])
def test_no_durations(bad: list[float]) -> None:
    for function in (st.spread, st.outliers):
        with pytest.raises(ValueError, match="expected"):
            function(bad)


def test_outliers_are_counted_not_removed() -> None:
    samples = [10.0, 10.1, 10.2, 10.1, 10.0, 10.2, 10.1, 30.0]
    assert st.outliers(samples) == 1
    assert st.spread(samples).max == 30
    assert st.outliers([10.0, 10.1] * 4) == 0


@pytest.mark.parametrize("count", [6, 7, 20, 100, 999, 1000, 1999, 2000])
def test_ranks_of_the_median_are_exact(count: int) -> None:
    """At least 95 % between them, and no narrower pair would do."""

    def coverage(low: int, high: int) -> float:
        return float(sum(comb(count, k) for k in range(low + 1, high + 1)) / 2**count)

    ranks = st.median_ranks(count)
    assert ranks is not None
    low, high = ranks
    assert low + high == count - 1
    assert coverage(low, high) >= 0.95
    assert coverage(low + 1, high - 1) < 0.95


def test_ranks_of_many_and_of_few() -> None:
    assert st.median_ranks(5) is None
    exact, normal = st.median_ranks(2000), st.median_ranks(2001)
    assert exact is not None
    assert normal is not None
    assert abs(exact[0] - normal[0]) <= 1


def test_noise() -> None:
    assert st.noise([1.0] * 5) == math.inf
    assert st.noise([1.0] * 6) == 0
    assert st.noise([0.0] * 6) == math.inf
    samples = [float(value) for value in range(1, 102)]
    ranks = st.median_ranks(101)
    assert ranks is not None
    assert st.noise(samples) == pytest.approx((ranks[1] - ranks[0]) / 2 / 51)
    assert st.noise(samples[::-1]) == st.noise(samples), "the order does not count"


def series(kind: str, rounds: int, seed: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Two engines of one speed, a value a round, in noise of one kind."""
    generator = np.random.default_rng(seed)
    drift = np.linspace(0, 0.5, rounds) if kind == "drift" else np.zeros(rounds)
    made = []
    for _ in range(2):
        own = generator.normal(0, 0.02, rounds)
        if kind == "heavy":
            own = own + (generator.random(rounds) < 0.15) * np.log1p(generator.pareto(1.2, rounds))
        if kind == "bimodal":
            own = own + 0.1 * (generator.random(rounds) < 0.3)
        made.append(10 * np.exp(drift + own))
    return tuple(made)


@pytest.mark.parametrize("kind", ["normal", "heavy", "drift", "bimodal"])
def test_paired_interval_covers(kind: str) -> None:
    """Of two equal engines the interval holds 1 about 19 times in 20, in every kind of noise; of
    one slowed by 5 % it holds 1 / 1.05 as often."""
    trials = 200
    found = [st.paired_ratio(*map(list, series(kind, 30, seed))) for seed in range(trials)]
    held = [low <= 1 <= high for _, low, high in (f for f in found if f)]
    assert len(held) == trials
    assert sum(held) >= 0.90 * trials
    slowed = [
        st.paired_ratio(list(base), list(other * 1.05))
        for base, other in (series(kind, 30, seed) for seed in range(trials))
    ]
    assert sum(low <= 1 / 1.05 <= high for _, low, high in (f for f in slowed if f)) >= 0.9 * trials


def test_unpaired_intervals_do_not_survive_what_paired_ones_do() -> None:
    """The control: with a burst of load in one half of the run, common to both engines, pairs see
    nothing of it; the two series as such are too uncertain to say anything."""
    generator = np.random.default_rng(0)
    load = np.where(np.arange(48) < 24, 1.0, 1.4)
    base, other = (load * np.exp(generator.normal(0, 0.005, 48)) for _ in range(2))
    paired = st.paired_ratio(list(base), list(other * 1.05))
    unpaired = st.unpaired_ratio(list(base), list(other * 1.05))
    assert st.verdict(paired) == "slower"
    assert st.verdict(unpaired) == "ambiguous"


def test_few_rounds_have_no_interval() -> None:
    assert st.paired_ratio([1.0] * 5, [1.0] * 5) is None
    assert st.unpaired_ratio([1.0] * 100, [1.0] * 5) is None
    assert st.verdict(None) == "ambiguous"


def test_paired_refuses() -> None:
    with pytest.raises(ValueError, match="as many rounds"):
        st.paired_ratio([1.0] * 6, [1.0] * 7)
    with pytest.raises(ValueError, match="positive"):
        st.paired_ratio([1.0] * 6, [0.0] * 6)
    with pytest.raises(ValueError, match="finite"):
        st.paired_ratio([1.0] * 6, [math.nan] * 6)


def test_unpaired_covers() -> None:
    trials, held = 200, 0
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        base, other = (list(np.exp(generator.normal(0, 0.05, 300))) for _ in range(2))
        found = st.unpaired_ratio(base, other)
        assert found is not None
        held += found[1] <= 1 <= found[2]
    assert held >= 0.93 * trials


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.5, 1.4, 1.6), "faster"),
        ((0.5, 0.4, 0.6), "slower"),
        ((1.0, 0.99, 1.01), "no difference"),
        ((1.01, 1.005, 1.02), "no difference"),  # there, but of no interest
        ((1.0, 0.9, 1.1), "ambiguous"),
        ((1.05, 0.99, 1.1), "ambiguous"),
        ((1.02, 1.001, 1.04), "ambiguous"),  # a difference, perhaps one of interest
        ((0.98, 0.95, 0.999), "ambiguous"),
        ((1.04, 1.02, 1.06), "faster"),
        ((1 / 1.04, 1 / 1.06, 1 / 1.02), "slower"),
    ],
)
def test_verdict(interval: tuple[float, float, float], verdict: str) -> None:
    assert st.verdict(interval) == verdict
    ratio, low, high = interval
    mirrored = {"faster": "slower", "slower": "faster"}.get(verdict, verdict)
    assert st.verdict((1 / ratio, 1 / high, 1 / low)) == mirrored


def test_verdict_of_another_interest() -> None:
    interval = (1.04, 1.02, 1.06)
    assert st.verdict(interval, 0.1) == "no difference"
    assert st.verdict(interval, 0.05) == "ambiguous"
    with pytest.raises(ValueError, match="above 0"):
        st.verdict(interval, 0.0)
