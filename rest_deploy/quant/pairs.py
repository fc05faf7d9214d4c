"""Weights whose 8-bit products cannot overflow, on any x86 CPU, whatever the input is.

Without VNNI an x86 kernel multiplies unsigned by signed bytes and adds two neighbouring products in
16 bits, where they saturate (vpmaddubsw). Signed activations are shifted to unsigned ones first. So
255 * (a + b) must stay below 2^15 for any two weights a, b of one sign that are added first:
a + b <= 128. That says the weight alone, and no calibration image is needed to prove it.

Keeping every weight to 7 bits does it too, and costs half of the resolution. Two neighbours are
seldom both large: scales that are chosen by pairs are hardly wider than those of 8 bits.

Which weights are added first is the kernel's choice. All of them (oneDNN, OpenVINO's own, MLAS)
pack four along the summed axis, so the first with the second, the third with the fourth. That axis
is K for a GEMM; for a convolution the channels of one tap, or the flattened patch (im2col),
channels first or last. All of these are held; tests/engine/test_pairs_of_kernels.py holds the
kernels to them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.contracts import Sums
from rest_deploy.errors import InvariantError
from rest_deploy.graph.roles import Place, place
from rest_deploy.quant.probe import output_axis

LIMIT = 128
"""Largest sum of two weights of one sign: 255 * 128 = 32640 < 32768."""

ROUNDS = 32
"""Of widening scales until the rounded integers fit; two or three do."""

Array = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int8]


def largest_pair(weight: npt.NDArray[np.generic], axis: int) -> Array:
    """Per output channel (on `axis`), the largest sum of one sign that is added first. (C_out,)

    weight: a GEMM's (K, O) or (O, K), or a convolution's (O, I, kh, kw), integers or floats.
    """
    rows = np.moveaxis(weight.astype(np.float64), axis, 0)
    count = len(rows)
    orders = [rows.reshape(count, 1, -1)]
    if rows.ndim == 4:
        taps = rows.reshape(count, rows.shape[1], -1).transpose(0, 2, 1)  # (O, kh * kw, I)
        orders += [taps, taps.reshape(count, 1, -1)]
    found: Array = np.maximum.reduce([_largest(order) for order in orders])
    return found


def _largest(order: Array) -> Array:
    """(O, runs, length), each run packed from its begin -> (O,)"""
    even = np.pad(order, ((0, 0), (0, 0), (0, order.shape[2] % 2)))
    two = even.reshape(len(order), -1, 2)
    sides = [side.sum(axis=2).max(axis=1) for side in (np.maximum(two, 0), np.maximum(-two, 0))]
    found: Array = np.maximum(*sides)
    return found


def fit(
    weight: Array, axis: int, scales: Array, rounded: Callable[[Array], Integers]
) -> tuple[Integers, Array]:
    """The integers and the scales, (C_out,), of a weight whose pairs stay within `LIMIT`.

    scales: to begin with, one per output channel; they only grow. rounded: the integers that the
    weight has with other scales. Raises `InvariantError` where no scale is found.
    """
    wider = np.maximum(scales, largest_pair(weight, axis) / LIMIT)
    for _ in range(ROUNDS):
        stored = rounded(wider)
        pairs = largest_pair(stored, axis)
        if (pairs <= LIMIT).all():
            return stored, wider
        # Rounding up takes a pair over the limit by one or two.
        wider = np.where(pairs > LIMIT, wider * (pairs / LIMIT), wider)
    raise InvariantError(f"no scale keeps the pairs of a weight of shape {weight.shape} in bounds")


def prove(model: ir.Model) -> tuple[Sums, ...]:
    """Every (block, role) of an INT8 Q/DQ graph, in graph order: the worst of its layers."""
    found: dict[Place, Sums] = {}
    for node in model.graph:
        here = place(node.name or "")
        if here is None or node.op_type not in {"MatMul", "Gemm", "Conv"}:
            continue
        if any(_dequantizer(value) is None for value in node.inputs[:2]):
            continue  # it computes in float
        pair = pair_of(node)
        exact = 0 < pair <= LIMIT
        sums = Sums(block=here.block, role=here.role, pair=pair, exact=exact)
        before = found.setdefault(here, sums)
        if (not exact, pair) > (not before.exact, before.pair):
            found[here] = sums
    return tuple(found.values())


def pair_of(node: ir.Node) -> int:
    """The largest pair of a quantized layer's weight; 0 where its integers are no constant, as of a
    product of two activations."""
    dequantizer = _dequantizer(node.inputs[1])
    stored = dequantizer.inputs[0] if dequantizer is not None else None
    if stored is None or stored.const_value is None:
        return 0
    return int(largest_pair(stored.const_value.numpy(), output_axis(node)).max())


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    made = None if value is None else value.producer()
    return made if made is not None and made.op_type == "DequantizeLinear" else None
