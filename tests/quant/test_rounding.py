from __future__ import annotations

import numpy as np
import pytest

from rest_deploy.quant.rounding import round_weight


def output_error(rows: np.ndarray, rounded: np.ndarray, moment: np.ndarray) -> float:
    difference = rounded - rows
    return float(np.einsum("ok,kl,ol->", difference, moment, difference))


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((16, 27))


SCALES = np.full(16, 3 / 7)
"""Coarse, 4 bits, so that rounding shows."""


def test_alike_inputs_gain_several_times(rows: np.ndarray) -> None:
    alike = 0.95 * np.ones((27, 27)) + 0.05 * np.eye(27)
    nearest = np.clip(np.round(rows / SCALES[:, None]), -7, 7) * SCALES[:, None]
    fitted = round_weight(rows, alike, SCALES, 7) * SCALES[:, None]
    assert output_error(rows, fitted, alike) < output_error(rows, nearest, alike) / 3


def test_unrelated_inputs_round_to_nearest(rows: np.ndarray) -> None:
    fitted = round_weight(rows, np.eye(27), SCALES, 7)
    np.testing.assert_array_equal(fitted, np.clip(np.round(rows / SCALES[:, None]), -7, 7))


def test_values_are_integers_within_the_levels(rows: np.ndarray) -> None:
    moment = np.cov(np.random.default_rng(1).standard_normal((27, 40)))
    fitted = round_weight(rows, moment, SCALES, 7)
    assert (fitted == np.round(fitted)).all()
    assert np.abs(fitted).max() <= 7


def test_inputs_that_are_always_zero(rows: np.ndarray) -> None:
    fitted = round_weight(rows, np.zeros((27, 27)), SCALES, 7)
    assert np.isfinite(fitted).all()
