"""What a layer's weights meet: E[x x^T] of its sampled inputs, for `rounding`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.errors import InvariantError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Kind = TypeVar("Kind", bound=np.generic)

ROWS_PER_IMAGE = 256


@dataclass(frozen=True)
class Geometry:
    """Of a convolution; `pads` are symmetric (rows, columns)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]


class Probe:
    """Accumulates E[x x^T] over images. x is a token, or the patch under a convolution's kernel,
    from a seeded sample of each image."""

    def __init__(self, layers: Sequence[ir.Node]) -> None:
        """layers: all that read the tensor with constant weights."""
        self._geometry = _geometry(layers)
        width = len(weight_matrix(layers[0]))
        self._sum = np.zeros((width, width))
        self._images = 0

    def add(self, array: Float32) -> None:
        """array: (B, N, C) tokens, (B, C) pooled or (B, C, H, W) maps."""
        for image in array:
            rows = self._rows(image, np.random.default_rng(self._images))
            self._sum += rows.T @ rows
            self._images += 1

    @property
    def moment(self) -> Float64:
        """(K, K); K in the order of a flattened (C, kh, kw) kernel."""
        return self._sum / max(1, self._images * ROWS_PER_IMAGE)

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """What `restore` needs to go on."""
        return {"sum": self._sum, "images": np.array(self._images)}

    def restore(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        self._sum = np.array(state["sum"], np.float64)
        self._images = int(np.asarray(state["images"], np.int64))

    def _rows(self, image: Float32, random: np.random.Generator) -> Float32:
        if self._geometry is None:
            rows = image.reshape(-1, image.shape[-1])
            return rows[random.integers(0, len(rows), ROWS_PER_IMAGE)]
        top, left = self._geometry.pads
        padded = np.pad(image, ((0, 0), (top, top), (left, left)))
        kernel, strides = self._geometry.kernel, self._geometry.strides
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))
        windows = windows[:, :: strides[0], :: strides[1]]
        y = random.integers(0, windows.shape[1], ROWS_PER_IMAGE)
        x = random.integers(0, windows.shape[2], ROWS_PER_IMAGE)
        patches: Float32 = windows[:, y, x].transpose(1, 0, 2, 3)
        return patches.reshape(ROWS_PER_IMAGE, -1)


def weight_matrix(layer: ir.Node) -> Float32:
    """A layer's constant weight as (K, O): MatMul's own form, Gemm's with transB, Conv's."""
    weight = _weight(layer)
    if layer.op_type == "Conv":
        return weight.reshape(weight.shape[0], -1).T
    return weight.T if _transposed(layer) else weight


def from_matrix(layer: ir.Node, matrix: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """Inverse of `weight_matrix`: (K, O) -> the layout of the layer's own weight."""
    rows = matrix.T if layer.op_type == "Conv" or _transposed(layer) else matrix
    return np.ascontiguousarray(rows).reshape(_weight(layer).shape)


def output_axis(layer: ir.Node) -> int:
    """Axis of the output channels: a convolution's first, MatMul's last, Gemm's by transB."""
    return 0 if layer.op_type == "Conv" or _transposed(layer) else 1


def _weight(layer: ir.Node) -> Float32:
    value = layer.inputs[1]
    assert value is not None
    assert value.const_value is not None
    weight: Float32 = value.const_value.numpy().astype(np.float32)
    return weight


def _transposed(layer: ir.Node) -> bool:
    return layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) == 1


def _geometry(layers: Sequence[ir.Node]) -> Geometry | None:
    convolutions = [layer for layer in layers if layer.op_type == "Conv"]
    if not convolutions:
        return None
    if len(layers) != 1:
        raise InvariantError(f"{len(layers)} layers read the input of {convolutions[0].name}")
    attributes, sizes = convolutions[0].attributes, _weight(convolutions[0]).shape
    strides = list(attributes.get_ints("strides", [1, 1]))
    pads = list(attributes.get_ints("pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:] or attributes.get_int("group", 1) != 1:
        raise InvariantError(f"{convolutions[0].name}: only symmetric pads and one group are known")
    return Geometry((sizes[2], sizes[3]), (strides[0], strides[1]), (pads[0], pads[1]))
