"""What is told of one output against the reference's, by the kind of output it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rest_deploy.signature import Output
from rest_deploy.verify import metrics

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Distances:
    """See `metrics`. kl and agreement: of logits and probabilities; neighbours: of an embedding;
    None of other outputs."""

    relative_error: float
    kl: float | None = None
    agreement: float | None = None
    neighbours: float | None = None


def distances(output: Output, reference: Array, actual: Array) -> Distances:
    """Of (N, classes), (N, C) or (N, C, H, W), whatever `output` is."""
    error = metrics.relative_error(reference, actual)
    if output.kind == "embedding":
        return Distances(error, neighbours=metrics.neighbours_kept(reference, actual))
    if output.kind == "features":
        return Distances(error)
    divergence = metrics.kl_divergence if output.kind == "logits" else metrics.kl_of_probabilities
    return Distances(error, divergence(reference, actual), metrics.agreement(reference, actual))
