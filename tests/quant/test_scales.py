from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.quant.observe import Histogram
from rest_deploy.quant.scales import ALGORITHMS, BINS, LARGEST, bin_values, weight_scales

LEVELS = LARGEST["int8"]


def observed(values: npt.NDArray[np.float32]) -> Histogram:
    """Repeated so that the sampled histogram sees every value."""
    observation = Histogram()
    observation.add(np.repeat(values, 5).reshape(-1, 1))
    return observation


def quantization_error(values: npt.NDArray[np.float32], threshold: float) -> float:
    scale = threshold / LEVELS
    quantized = np.clip(np.round(values / scale), -LEVELS, LEVELS) * scale
    return float(np.mean((quantized - values) ** 2))


def test_bins_are_relative() -> None:
    values = bin_values()
    assert len(values) == BINS
    assert (np.diff(values) >= 0).all()
    usual = values[(values > 1e-3) & (values < 1e3)]
    assert (usual[1:] / usual[:-1] < 1.01).all()


def test_minmax_is_the_exact_largest() -> None:
    seen = observed(np.array([0.1, -3.7123, 2.0], np.float32))
    assert ALGORITHMS["minmax"](seen.counts, seen.largest, LEVELS) == np.float32(3.7123)


def test_percentile_leaves_the_outlier_out() -> None:
    values = np.append(np.linspace(-1, 1, 100_000), 50).astype(np.float32)
    seen = observed(values)
    assert ALGORITHMS["percentile"](seen.counts, seen.largest, LEVELS) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("spread", ["normal", "laplace", "uniform"])
def test_mse_is_near_the_best_threshold(spread: str) -> None:
    rng = np.random.default_rng(0)
    draws = {
        "normal": rng.normal(size=50_000),
        "laplace": rng.laplace(size=50_000),
        "uniform": rng.uniform(-1, 1, 50_000),
    }
    values = draws[spread].astype(np.float32)
    seen = observed(values)
    chosen = ALGORITHMS["mse"](seen.counts, seen.largest, LEVELS)
    best = min(quantization_error(values, seen.largest * f) for f in np.linspace(0.2, 1, 200))
    assert quantization_error(values, chosen) <= 1.02 * best


def test_mse_clips_an_outlier_and_minmax_does_not() -> None:
    values = np.append(np.random.default_rng(1).normal(size=50_000), 40).astype(np.float32)
    seen = observed(values)
    mse, minmax = (
        ALGORITHMS[name](seen.counts, seen.largest, LEVELS) for name in ("mse", "minmax")
    )
    assert mse < 0.9 * minmax
    assert quantization_error(values, mse) < quantization_error(values, minmax)


def test_entropy_keeps_a_uniform_spread_and_clips_a_far_tail() -> None:
    rng = np.random.default_rng(2)
    uniform = observed(rng.uniform(-1, 1, 100_000).astype(np.float32))
    assert ALGORITHMS["entropy"](uniform.counts, uniform.largest, LEVELS) > 0.9
    tail = np.append(rng.normal(size=100_000), [60.0]).astype(np.float32)
    seen = observed(tail)
    assert 2 < ALGORITHMS["entropy"](seen.counts, seen.largest, LEVELS) < 20


def test_weight_scales_are_per_output_channel() -> None:
    weight = np.array([[1.0, -2.0], [0.5, 0.0]])
    np.testing.assert_allclose(weight_scales(weight, 0, LEVELS), [2 / 127, 0.5 / 127])
    np.testing.assert_allclose(weight_scales(weight, 1, LEVELS), [1 / 127, 2 / 127])
    np.testing.assert_allclose(weight_scales(np.zeros((2, 3)), 0, LEVELS), 1 / 127)
