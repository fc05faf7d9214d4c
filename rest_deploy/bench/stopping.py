"""When a measurement may end: named rules on the samples so far, each with its reason in words.

Pure: the caller brings samples and seconds. The ideas are NVBench's: noise below a target, but not
before a least time and number of samples; a limit on time that is announced, not hidden; and, as
its entropy criterion does, an end where more samples no longer tell more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rest_deploy.bench.statistics import LEAST, median, noise
from rest_deploy.contracts import Struct

Rule = Literal["noise", "time", "samples", "stalled"]

STALLED = 0.8
"""Of the noise of the first quarter: independent samples bring it to a half."""

STEADY_WITHIN = 0.02
WARM_RUNS = 5
"""Warm-up is over when two runs of so many in a row have medians this close."""


class Limits(Struct, frozen=True):
    """noise: target, half width of the 95 % interval of the median, relative to it. Seconds are of
    inference, not of the harness; maxima win over minima."""

    noise: float = 0.01
    min_seconds: float = 0.5
    max_seconds: float = 10.0
    min_samples: int = 20
    max_samples: int = 20_000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(f"noise must be finite and positive, got {self.noise}")
        if not 0 <= self.min_seconds <= self.max_seconds < math.inf or self.max_seconds == 0:
            raise ValueError(
                f"expected 0 <= min_seconds <= max_seconds and max_seconds > 0, got "
                f"{self.min_seconds} and {self.max_seconds}"
            )
        if not LEAST <= self.min_samples <= self.max_samples:
            raise ValueError(
                f"expected {LEAST} <= min_samples <= max_samples, got {self.min_samples} and "
                f"{self.max_samples}: fewer have no 95 % interval"
            )


class Stop(Struct, frozen=True):
    """Which rule ended it, the reason in words, the noise and the number of runs then."""

    rule: Rule
    words: str
    noise: float
    runs: int


def judge(samples: Sequence[float], seconds: float, limits: Limits) -> Stop | None:
    """Whether a measurement may end. samples: ms, in order of time; seconds: spent inferring.

    With fewer than `LEAST` samples nothing ends it: they would have no interval.
    """
    count = len(samples)
    if count < LEAST:
        return None
    now = noise(samples)
    told = _compared(now, limits.noise)
    if seconds >= limits.max_seconds:
        return Stop(
            rule="time",
            words=f"time {limits.max_seconds:g} s is over, {told} after {count} runs",
            noise=now,
            runs=count,
        )
    if count >= limits.max_samples:
        return Stop(
            rule="samples", words=f"{count} runs are the most, {told}", noise=now, runs=count
        )
    if count < limits.min_samples or seconds < limits.min_seconds:
        return None
    if now <= limits.noise:
        return Stop(rule="noise", words=f"{told} after {count} runs", noise=now, runs=count)
    if count >= 4 * limits.min_samples and stalled(samples):
        quarter = count // 4
        words = (
            f"noise no longer falls: {now * 100:.1f} % after {count} runs, "
            f"{noise(samples[:quarter]) * 100:.1f} % after {quarter}"
        )
        return Stop(rule="stalled", words=words, noise=now, runs=count)
    return None


def stalled(samples: Sequence[float]) -> bool:
    """Whether four times the samples did not make the median much better known: the machine
    changes while it is measured, and more of the same does not help."""
    quarter = len(samples) // 4
    return quarter >= LEAST and noise(samples) >= STALLED * noise(samples[:quarter])


def steady(samples: Sequence[float]) -> bool:
    """Whether the last runs of a warm-up are no faster or slower than those before them."""
    if len(samples) < 2 * WARM_RUNS:
        return False
    before = median(sorted(samples[-2 * WARM_RUNS : -WARM_RUNS]))
    last = median(sorted(samples[-WARM_RUNS:]))
    return before > 0 and abs(last / before - 1) <= STEADY_WITHIN


def _compared(value: float, target: float) -> str:
    sign = "<=" if value <= target else ">"
    return f"noise {value * 100:.1f} % {sign} {target * 100:.1f} %"
