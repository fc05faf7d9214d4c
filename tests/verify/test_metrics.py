from __future__ import annotations

import numpy as np
import pytest

from rest_deploy.verify import metrics

REFERENCE = np.array([[1.0, 2.0, 3.0], [0.0, 4.0, -3.0]])


def test_equal_logits() -> None:
    actual = REFERENCE.astype(np.float32)
    assert metrics.relative_error(REFERENCE, actual) == 0
    assert metrics.max_abs_error(REFERENCE, actual) == 0
    assert metrics.cosine(REFERENCE, actual) == pytest.approx(1)
    assert metrics.kl_divergence(REFERENCE, actual) == 0
    assert metrics.agreement(REFERENCE, actual) == 1


def test_known_distances() -> None:
    actual = REFERENCE + np.array([[0.0, 0.0, 0.3], [0.0, 0.0, 0.0]])
    assert metrics.relative_error(REFERENCE, actual) == pytest.approx(0.3 / np.sqrt(39))
    assert metrics.max_abs_error(REFERENCE, actual) == pytest.approx(0.3)
    assert metrics.cosine(REFERENCE, REFERENCE * 5) == pytest.approx(1)
    assert metrics.cosine(REFERENCE, -REFERENCE) == pytest.approx(-1)


def test_kl_by_hand() -> None:
    """Two classes, p = (3/4, 1/4), q = (1/2, 1/2)."""
    p, q = np.log([[0.75, 0.25]]), np.log([[0.5, 0.5]])
    assert metrics.kl_divergence(p, q) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert metrics.kl_divergence(p, q + 100) == pytest.approx(metrics.kl_divergence(p, q))


def test_agreement_counts_images() -> None:
    actual = REFERENCE[:, ::-1]
    assert metrics.agreement(REFERENCE, actual) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_never_passes(bad: float) -> None:
    actual = REFERENCE.copy()
    actual[0, 0] = bad
    assert metrics.relative_error(REFERENCE, actual) == np.inf
    assert metrics.max_abs_error(REFERENCE, actual) == np.inf
    assert metrics.cosine(REFERENCE, actual) == -1
    assert metrics.kl_divergence(REFERENCE, actual) == np.inf
    assert metrics.agreement(REFERENCE, actual) == 0.5  # the other image still agrees


def test_a_constant_output_is_far_away() -> None:
    zeros = np.zeros_like(REFERENCE)
    assert metrics.relative_error(REFERENCE, zeros) == pytest.approx(1)
    assert metrics.cosine(REFERENCE, zeros) == -1


def test_neighbours() -> None:
    """Three pairs; whoever is broken has kept nothing, and is nobody's neighbour."""
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0], [-1, 0.1]], float)
    assert metrics.neighbours_kept(rows, rows * 3) == 1
    assert metrics.neighbours_kept(rows, rows[[0, 2, 1, 3, 4, 5]]) == pytest.approx(2 / 6)
    broken = rows.copy()
    broken[0] = np.nan
    assert metrics.neighbours_kept(rows, broken) == pytest.approx(4 / 6)
    assert metrics.neighbours_kept(rows, np.zeros_like(rows)) == 0


def test_neighbours_that_are_equally_near() -> None:
    """The reference tells them apart by 4e-5: whichever the engine finds is as good."""
    rows = np.array([[1, 0], [1, 0.02], [1, -0.0221], [-1, 0]], float)
    swapped = rows[[0, 2, 1, 3]]
    assert metrics.neighbours_kept(rows, swapped, tie=0) < 1
    assert metrics.neighbours_kept(rows[:3], swapped[:3]) == 1
    far = np.array([[1, 0], [1, 0.02], [1, -0.5], [-1, 0]], float)
    assert metrics.neighbours_kept(far, far[[0, 2, 1, 3]]) < 1


def test_kl_of_probabilities() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 7)) * 4
    other = logits + 0.01 * np.random.default_rng(1).standard_normal((3, 7))

    def softmax(x: np.ndarray) -> np.ndarray:
        spread: np.ndarray = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        return spread

    found = metrics.kl_of_probabilities(softmax(logits), softmax(other))
    assert found == pytest.approx(metrics.kl_divergence(logits, other), rel=1e-3)
    assert np.isfinite(metrics.kl_of_probabilities(np.array([[1, 1e-50]]), np.array([[1.0, 0.0]])))
    assert metrics.kl_of_probabilities(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])) > 1
    assert metrics.kl_of_probabilities(np.array([[1.0, 0.0]]), np.array([[np.nan, 0]])) == np.inf


def test_maps_are_compared_whole() -> None:
    maps = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    assert metrics.cosine(maps, maps * 2) == pytest.approx(1)
    assert metrics.cosine(maps, maps[:, ::-1]) < 0.9


def test_nearest() -> None:
    """By angle, not by length, and never itself."""
    rows = np.array([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [0.2, 9.0]])
    assert metrics.nearest(rows).tolist() == [1, 0, 3, 2]
