"""From what was observed to a scale: pure functions on histograms and arrays.

All quantization here is symmetric (zero point 0): TensorRT accepts nothing else. A scale is
threshold / LARGEST[format]; values beyond the threshold saturate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

Algorithm = Literal["minmax", "percentile", "entropy", "mse"]
Format = Literal["int8", "fp8"]

LARGEST: dict[Format, float] = {"int8": 127.0, "fp8": 448.0}
"""Largest magnitude: INT8 without -128, which would make the range asymmetric; E4M3FN."""

BINS = 1 << 15
"""One for every non-negative bfloat16: 8 bits of exponent, 7 of mantissa."""

PERCENTILE = 99.99

CANDIDATES = np.linspace(0.2, 1.0, 81)
"""Thresholds tried by the searching algorithms, in units of the largest value."""

Counts = npt.NDArray[np.int64]
Array = npt.NDArray[np.floating]


def bin_values() -> npt.NDArray[np.float64]:
    """The magnitude each bin stands for: the middle of the float32 values it collects."""
    lower = _bin_edges()
    upper = np.concatenate([lower[1:], lower[-1:]])
    middle: npt.NDArray[np.float64] = (lower + upper) / 2
    return middle


def _bin_edges() -> npt.NDArray[np.float64]:
    """Smallest float32 of each bin; the bins of infinity and NaN, always empty, get the largest."""
    lower = (np.arange(BINS, dtype=np.uint32) << 16).view(np.float32)
    largest = np.finfo(np.float32).max
    return np.where(np.isfinite(lower), lower, largest).astype(np.float64)


def minmax(counts: Counts, largest: float, levels: float) -> float:
    """Everything fits: the largest magnitude seen."""
    del counts, levels
    return largest


def percentile(counts: Counts, largest: float, levels: float) -> float:
    """The magnitude that `PERCENTILE` of all values do not exceed."""
    del levels
    cumulative = np.cumsum(counts)
    index = int(np.searchsorted(cumulative, cumulative[-1] * PERCENTILE / 100))
    return float(min(bin_values()[min(index, BINS - 1)], largest))


def mse(counts: Counts, largest: float, levels: float) -> float:
    """The threshold with the least mean squared error, rounding plus saturation.

    Nagel et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295, section 3.1.
    """
    values, weights = _occupied(counts)
    errors = [
        _squared_error(values, weights, largest * fraction, levels) for fraction in CANDIDATES
    ]
    return float(largest * CANDIDATES[int(np.argmin(errors))])


def entropy(counts: Counts, largest: float, levels: float) -> float:
    """The threshold whose quantized distribution is closest in KL divergence.

    Migacz, "8-bit Inference with TensorRT", GTC 2017, on 2048 equal bins.
    """
    bins, steps = 2048, int(levels) + 1
    # A bin's values are spread over its width; at the top it is wider than a linear bin.
    edges = np.concatenate([_bin_edges(), [float(np.finfo(np.float32).max)]])
    cumulative = np.append(0, np.cumsum(counts)).astype(np.float64)
    histogram = np.diff(np.interp(np.linspace(0, largest, bins + 1), edges, cumulative))
    best, chosen = np.inf, largest
    for stop in range(steps, bins + 1, 16):
        p = histogram[:stop].copy()
        p[-1] += histogram[stop:].sum()
        divergence = _kl(p, _requantized(histogram[:stop], steps))
        if divergence < best:
            best, chosen = divergence, largest * stop / bins
    return float(chosen)


ALGORITHMS: dict[Algorithm, Callable[[Counts, float, float], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
"""counts: of magnitudes, one a bin; largest: the exact maximum; levels: LARGEST[format]."""


def weight_scales(weight: Array, axis: int, levels: float) -> Array:
    """One scale per output channel, on `axis`: its largest magnitude / levels.

    Searching a smaller threshold gains nothing at 8 bits. A channel of zeros gets 1 / levels.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    scales: Array = np.where(largest > 0, largest, 1.0) / levels
    return scales


def _occupied(counts: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    occupied = np.flatnonzero(counts)
    return bin_values()[occupied], counts[occupied].astype(np.float64)


def _squared_error(values: Array, weights: Array, threshold: float, levels: float) -> float:
    step = threshold / levels
    # Below half a step a value becomes 0; above, its rounding error is uniform.
    rounding = np.where(values < step / 2, values**2, step**2 / 12)
    saturation = np.maximum(values - threshold, 0) ** 2
    return float((weights * np.where(values > threshold, saturation, rounding)).sum())


def _requantized(histogram: Array, steps: int) -> Array:
    """The histogram merged into `steps` levels and spread again over the bins it came from."""
    edges = np.linspace(0, len(histogram), steps + 1).round().astype(int)
    sums = np.add.reduceat(histogram, edges[:-1])
    occupied = np.add.reduceat((histogram > 0).astype(float), edges[:-1])
    average = np.divide(sums, occupied, out=np.zeros_like(sums, dtype=float), where=occupied > 0)
    return np.where(histogram > 0, np.repeat(average, np.diff(edges)), 0.0)


def _kl(p: Array, q: Array) -> float:
    p, q = p / p.sum(), q / max(q.sum(), 1e-300)
    inside = p > 0
    with np.errstate(divide="ignore"):
        return float((p[inside] * (np.log(p[inside]) - np.log(q[inside]))).sum())
