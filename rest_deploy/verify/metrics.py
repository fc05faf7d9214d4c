"""Distances between an engine's logits and the reference's: pure functions on arrays.

All take `reference` and `actual` of shape (N, classes), compute in float64 and return floats.
NaN or infinity in `actual` is never replaced: distances become infinite, agreement counts it as
a disagreement.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def relative_error(reference: Array, actual: Array) -> float:
    """||actual - reference|| / ||reference||, L2 over the whole batch."""
    if not np.isfinite(actual).all():
        return float("inf")
    difference = np.linalg.norm(actual.astype(np.float64) - reference)
    return float(difference / np.linalg.norm(reference))


def max_abs_error(reference: Array, actual: Array) -> float:
    """Largest absolute difference of one logit."""
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual.astype(np.float64) - reference).max())


def cosine(reference: Array, actual: Array) -> float:
    """Smallest cosine similarity of an image's logits with its reference; -1 for non-finite."""
    if not np.isfinite(actual).all():
        return -1.0
    a = actual.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(reference, axis=1)
    products = (a * reference).sum(axis=1)
    # A zero vector has no direction: similar to nothing.
    return float(np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), -1.0).min())


def kl_divergence(reference: Array, actual: Array) -> float:
    """Mean KL(softmax(reference) || softmax(actual)) over the images, in nats."""
    if not np.isfinite(actual).all():
        return float("inf")
    p, q = _log_softmax(reference.astype(np.float64)), _log_softmax(actual.astype(np.float64))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def agreement(reference: Array, actual: Array) -> float:
    """Fraction of images with the same top-1 class."""
    finite = np.isfinite(actual).all(axis=1)
    same = np.argmax(reference, axis=1) == np.argmax(np.nan_to_num(actual), axis=1)
    return float((same & finite).mean())


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
