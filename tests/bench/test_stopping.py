"""Stopping rules on fed numbers: each fires, says why, and does not fire without its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rest_deploy.bench.stopping import Limits, judge, stalled, steady

LIMITS = Limits(min_samples=20, max_samples=1000, min_seconds=0.5, max_seconds=10)


def lognormal(count: int, sigma: float, seed: int = 0) -> list[float]:
    return [float(v) for v in 10 * np.exp(np.random.default_rng(seed).normal(0, sigma, count))]


def test_noise_below_target() -> None:
    stop = judge([10.0] * 20, 0.5, LIMITS)
    assert stop is not None
    assert (stop.rule, stop.runs) == ("noise", 20)
    assert stop.words == "noise 0.0 % <= 1.0 % after 20 runs"


@pytest.mark.parametrize(("count", "seconds"), [(19, 5.0), (20, 0.49), (5, 99.0), (0, 99.0)])
def test_not_before_the_minima(count: int, seconds: float) -> None:
    """Also not for time where there would be no interval."""
    assert judge([10.0] * count, seconds, LIMITS) is None


def test_time_is_over() -> None:
    samples = lognormal(50, 0.3)
    assert judge(samples, 9.99, LIMITS) is None
    stop = judge(samples, 10.0, LIMITS)
    assert stop is not None
    assert stop.rule == "time"
    assert stop.words == f"time 10 s is over, noise {stop.noise:.1%} > 1.0 % after 50 runs".replace(
        "%", " %", 1
    )


def test_samples_are_the_most() -> None:
    samples = lognormal(1000, 5.0)
    stop = judge(samples, 1.0, LIMITS)
    assert stop is not None
    assert stop.rule == "samples"
    assert "1000 runs are the most, noise " in stop.words
    assert " > 1.0 %" in stop.words


def drifting(count: int) -> list[float]:
    """A machine that gets slower and slower: more samples do not settle the median."""
    return [10.0 + 0.1 * index for index in range(count)]


def test_noise_that_no_longer_falls() -> None:
    stop = judge(drifting(400), 3.0, LIMITS)
    assert stop is not None
    assert stop.rule == "stalled"
    assert "no longer falls" in stop.words
    assert "after 400 runs" in stop.words
    assert "after 100" in stop.words
    assert judge(drifting(79), 3.0, LIMITS) is None, "too few to say so"


def test_independent_noise_seldom_looks_stalled() -> None:
    """The control: falling as 1 / sqrt(n), it is taken for stalled in less than one case in ten."""
    assert sum(stalled(lognormal(400, 0.3, seed)) for seed in range(200)) < 20
    assert stalled(drifting(400))
    assert not stalled(drifting(20))


@pytest.mark.parametrize(
    "fields",
    [
        {"noise": 0.0},
        {"noise": float("nan")},
        {"min_seconds": 2.0, "max_seconds": 1.0},
        {"min_seconds": 0.0, "max_seconds": 0.0},
        {"max_seconds": float("inf")},
        {"min_samples": 5},
        {"min_samples": 30, "max_samples": 20},
    ],
)
def test_limits_refuse(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|must be"):
        Limits(**fields)


def test_steady() -> None:
    assert not steady([10.0] * 9)
    assert steady([10.0] * 10)
    assert steady([50.0, 30.0] + [10.0] * 10)
    assert not steady([12.0] * 5 + [10.0] * 5)
    assert steady([10.0] * 4 + [99.0] + [10.0] * 5), "one slow run is not a trend"
