"""Distances between an engine's outputs and the reference's: pure functions on arrays.

All take `reference` and `actual` of one shape, (N, classes), (N, C) or (N, C, H, W), compute in
float64 and return floats. NaN or infinity in `actual` is never replaced: distances become infinite,
agreement counts it as a disagreement.
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


def worst_image_error(reference: Array, actual: Array) -> float:
    """`relative_error` of the image where it is the largest; NaN where a reference is all zero."""
    errors = [relative_error(one, other) for one, other in zip(reference, actual, strict=True)]
    return float(np.max(errors))


def max_abs_error(reference: Array, actual: Array) -> float:
    """Largest absolute difference of one number."""
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual.astype(np.float64) - reference).max())


def cosine(reference: Array, actual: Array) -> float:
    """Smallest cosine similarity of an image's output with its reference; -1 for non-finite."""
    if not np.isfinite(actual).all():
        return -1.0
    a, b = (x.astype(np.float64).reshape(len(x), -1) for x in (actual, reference))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    # A zero vector has no direction: similar to nothing.
    return float(np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), -1.0).min())


def kl_divergence(reference: Array, actual: Array) -> float:
    """Mean KL(softmax(reference) || softmax(actual)) over the images, in nats."""
    if not np.isfinite(actual).all():
        return float("inf")
    p, q = _log_softmax(reference.astype(np.float64)), _log_softmax(actual.astype(np.float64))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


LEAST_PROBABILITY = 2.0**-24
"""Smaller ones count as this: it is the least that float16 holds, and float32's softmax gives 0
where the reference has 1e-50, of which KL would be infinite."""


def kl_of_probabilities(reference: Array, actual: Array) -> float:
    """Mean KL(reference || actual) of probabilities over the images, in nats. Sums that rounding
    keeps from being 1 are allowed for: it is 0 for equal ones only, and never less."""
    if not np.isfinite(actual).all():
        return float("inf")
    p, q = (np.maximum(x.astype(np.float64), LEAST_PROBABILITY) for x in (reference, actual))
    return float((p * (np.log(p) - np.log(q)) - p + q).sum(axis=1).mean())


TIE = 1e-3
"""Of cosines: two neighbours that the reference itself tells apart by less are equally near. Of
crops of photos (rest_nano) half have a second neighbour as near as that."""


def neighbours_kept(reference: Array, actual: Array, tie: float = TIE) -> float:
    """Share of images whose nearest other image, by the cosine of (N, C) embeddings, is the one it
    is in the reference, or within `tie` as near there. One whose similarities are not finite has
    kept nothing."""
    exact, found = _similarities(reference), _similarities(actual)
    nearest = np.argmax(found, axis=1)
    rows = np.arange(len(found))
    kept = exact[rows, nearest] >= exact.max(axis=1) - tie
    return float((kept & np.isfinite(found[rows, nearest])).mean())


def nearest(embeddings: Array) -> npt.NDArray[np.intp]:
    """(N, C) -> (N,): of each image, the other one of greatest cosine."""
    return np.asarray(np.argmax(_similarities(embeddings), axis=1))


def agreement(reference: Array, actual: Array) -> float:
    """Fraction of images with the same top-1 class."""
    finite = np.isfinite(actual).all(axis=1)
    same = np.argmax(reference, axis=1) == np.argmax(np.nan_to_num(actual), axis=1)
    return float((same & finite).mean())


def _similarities(embeddings: Array) -> npt.NDArray[np.float64]:
    """Cosine of each row with each other one; -inf with itself and where either is not finite."""
    rows = embeddings.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    broken = ~np.isfinite(rows).all(axis=1)
    rows[broken] = 0.0
    similar: npt.NDArray[np.float64] = rows @ rows.T
    similar[broken] = similar[:, broken] = -np.inf
    np.fill_diagonal(similar, -np.inf)
    return similar


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
