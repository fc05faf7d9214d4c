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
