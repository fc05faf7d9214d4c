"""Round a weight to its grid so that what its layer computes changes least, not the weight itself.

Neighbouring pixels are alike: rounding errors of a 3x3 kernel's taps add up, and nearest rounding
does not care. Taps are rounded one after the other, and the error of each is made up for by those
still to come, weighted by how inputs move together (E[x x^T]). Frantar et al., "GPTQ", arXiv
2210.17323, after Hassibi and Stork's optimal brain surgeon. The stem gains; weights of the GEMMs
do not, since 64 and more inputs per output average out (docs/quantization.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

DAMPING = 0.01
"""Added to the diagonal, in units of its mean: GPTQ's choice."""


def round_weight(rows: Float64, moment: Float64, scales: Float64, levels: float) -> Float64:
    """rows: (O, K) weights; moment: (K, K) = E[x x^T] of the inputs; scales: (O,) one per row.

    Returns integers (O, K) within +-levels whose product with `scales` replaces the weights.
    """
    count = rows.shape[1]
    diagonal = np.diag(moment)
    damped = moment + np.eye(count) * max(DAMPING * float(diagonal.mean()), 1e-30)
    order = np.argsort(-diagonal, kind="stable")  # the taps that matter most choose first
    left = rows[:, order].copy()
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    rounded = np.empty_like(left)
    for k in range(count):
        rounded[:, k] = np.clip(np.round(left[:, k] / scales), -levels, levels)
        error = (left[:, k] - rounded[:, k] * scales) / upper[k, k]
        left[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    result = np.empty_like(rounded)
    result[:, order] = rounded
    return result
