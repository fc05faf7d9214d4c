"""What samples say: spread, outliers, how well the median is known, and which of two is faster.

All functions are pure. Durations in ms unless said otherwise; NaN, infinity and negative durations
are refused with `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rest_deploy.bench.record import Spread, Verdict

Float64 = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""Estimate, lower and upper end of its 95 % interval."""

CONFIDENCE = 0.95
SMALLEST_DIFFERENCE = 0.03
"""Of interest by default: less is no reason to deploy another engine."""

LEAST = 6
"""Samples below which no two of them hold the median with 95 % confidence: 1 - 2 / 2^5 < 0.95."""

FENCE = 1.5
"""Interquartile ranges above the third quartile (Tukey, Exploratory Data Analysis, 1977)."""

BLOCKS = 24
"""Into which a series is cut where neighbours in time resemble each other."""


def checked(samples: Sequence[float]) -> Float64:
    """The samples as an array, in order of time. Raises `ValueError`."""
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a series of durations, got shape {values.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        bad = values[~np.isfinite(values) | (values < 0)][0]
        raise ValueError(f"expected finite, non-negative durations, got {bad}")
    return values


def percentile(ordered: Sequence[float] | Float64, percent: float) -> float:
    """trtexec's definition: of N ascending values the one at N - 1 - floor((1 - percent / 100) N),
    never interpolated; so with N < 100 the 99th percentile is the maximum."""
    if not 0 < percent <= 100:
        raise ValueError(f"expected a percentage above 0 and up to 100, got {percent}")
    count = len(ordered)
    # 1 - 99 / 100 is a little more than 0.01: without rounding floor() would depend on it.
    excluded = math.floor(round((100 - percent) * count / 100, 9))
    return float(ordered[max(count - 1 - excluded, 0)])


def needed(percent: float) -> int:
    """Samples from which a percentile is not simply the maximum."""
    return math.ceil(round(100 / (100 - percent), 9))


def median(ordered: Sequence[float] | Float64) -> float:
    """Of ascending values; of an even number the mean of the middle two."""
    half = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[half])
    return (float(ordered[half - 1]) + float(ordered[half])) / 2


def spread(samples: Sequence[float]) -> Spread:
    """Raises `ValueError` for no samples and for those that are no durations."""
    values = np.sort(checked(samples))
    mean = float(values.mean())
    return Spread(
        n=int(values.size),
        min=float(values[0]),
        max=float(values[-1]),
        mean=mean,
        median=median(values),
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99),
        cov=float(values.std()) / mean if mean > 0 else 0.0,
    )


def upper_fence(samples: Sequence[float]) -> float:
    """Third quartile + `FENCE` interquartile ranges."""
    low, high = np.percentile(checked(samples), [25, 75])
    return float(high + FENCE * (high - low))


def outliers(samples: Sequence[float]) -> int:
    """How many lie beyond the upper fence. They stay: slow requests are what p99 is about."""
    return int((checked(samples) > upper_fence(samples)).sum())


@lru_cache(maxsize=4096)
def median_ranks(count: int) -> tuple[int, int] | None:
    """0-based ranks of the two ordered samples that hold the median with at least 95 % confidence,
    whatever the distribution: the largest k with P(Binomial(count, 1/2) < k) <= 2.5 %, from both
    ends. None below `LEAST`.

    Conover, Practical Nonparametric Statistics (3rd ed. 1999), section 3.2; Le Boudec, Performance
    Evaluation of Computer and Communication Systems (2010), theorem 2.1. For independent samples.
    """
    if count < LEAST:
        return None
    if count > 2000:  # where the normal approximation is off by less than one rank
        k = math.floor((count - 1.959964 * math.sqrt(count)) / 2)
        return k - 1, count - k
    term = math.exp(-count * math.log(2)) if count < 1000 else 0.0
    below, k = 0.0, 0
    while True:
        if count >= 1000:  # 2^-count underflows
            log = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            term = math.exp(log - count * math.log(2))
        if below + term > (1 - CONFIDENCE) / 2:
            return k - 1, count - k
        below += term
        k += 1
        term = term * (count - k + 1) / k


def median_interval(samples: Sequence[float] | Float64) -> Interval | None:
    """The median and its 95 % interval, by `median_ranks`; None with fewer than `LEAST`."""
    ranks = median_ranks(len(samples))
    if ranks is None:
        return None
    values = np.sort(np.asarray(samples, dtype=np.float64))
    return median(values), float(values[ranks[0]]), float(values[ranks[1]])


def noise(samples: Sequence[float] | Float64) -> float:
    """Half width of the 95 % interval of the median, relative to it; infinite below `LEAST`."""
    found = median_interval(samples)
    if found is None:
        return math.inf
    middle, low, high = found
    return (high - low) / 2 / middle if middle > 0 else math.inf


def paired_ratio(base: Sequence[float], other: Sequence[float]) -> Interval | None:
    """base / other of two engines measured in turn; 2 is twice as fast. One value a round: the
    median of its block, or its time per image. The median of the rounds' ratios with its 95 %
    interval by `median_ranks`; None with fewer than `LEAST` rounds.

    A round's two blocks are neighbours in time, so what slows the machine for longer than a round
    cancels. Chosen among five intervals on simulated noise: see benchmarks/harness.py.
    """
    before, after = checked(base), checked(other)
    if len(before) != len(after):
        raise ValueError(f"expected as many rounds of both, got {len(before)} and {len(after)}")
    if min(before.min(), after.min()) <= 0:
        raise ValueError("expected positive durations: a ratio to 0 says nothing")
    return median_interval(before / after)


def unpaired_ratio(base: Sequence[float], other: Sequence[float]) -> Interval | None:
    """base / other of two series of different runs, in order of time. None when one of them has
    fewer than `LEAST` samples.

    Each series is cut into up to `BLOCKS` blocks of neighbours, since neighbours resemble each
    other; the intervals of the medians of the blocks' medians are joined as in Zou and Donner,
    Statistics in Medicine 27 (2008), equation 3 (MOVER), on logarithms. What changed between the
    runs is part of the ratio, not of the interval.
    """
    sides = []
    for series in (base, other):
        values = checked(series)
        if values.min() <= 0:
            raise ValueError("expected positive durations: a ratio to 0 says nothing")
        blocks = [float(np.median(block)) for block in np.array_split(values, _blocks(values.size))]
        found = median_interval(np.log(blocks))
        if found is None:
            return None
        sides.append(found)
    (a, a_low, a_high), (b, b_low, b_high) = sides
    middle = a - b
    low = middle - math.hypot(a - a_low, b_high - b)
    high = middle + math.hypot(a_high - a, b - b_low)
    return math.exp(middle), math.exp(low), math.exp(high)


def _blocks(count: int) -> int:
    """As many as leave three samples to each, but no fewer than an interval needs."""
    return min(count, max(LEAST, min(BLOCKS, count // 3)))


def verdict(interval: Interval | None, smallest: float = SMALLEST_DIFFERENCE) -> Verdict:
    """What a ratio base / other says of `other`.

    "no difference": the whole interval is within `smallest`, that is from 1 / (1 + smallest) to
    1 + smallest. "faster" and "slower": the interval excludes 1 and the estimate is beyond
    `smallest`. Everything else, and no interval, is "ambiguous".
    """
    if smallest <= 0:
        raise ValueError(f"expected a smallest difference above 0, got {smallest}")
    if interval is None:
        return "ambiguous"
    ratio, low, high = interval
    if 1 / (1 + smallest) <= low and high <= 1 + smallest:
        return "no difference"
    if low > 1 and ratio > 1 + smallest:
        return "faster"
    if high < 1 and ratio < 1 / (1 + smallest):
        return "slower"
    return "ambiguous"
