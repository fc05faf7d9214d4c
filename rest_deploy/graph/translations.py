"""The shape operators of model/shape_ops.py in ONNX, for torch's exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from rest_deploy.errors import InvariantError
from rest_deploy.model.shape_ops import NAMESPACE


def _reshape(x: ir.Value, shape: Sequence[int]) -> ir.Value:
    return op.Reshape(x, op.Constant(value_ints=list(shape)))


# Both as 4-d transposes: convolutions of CPUs keep channels last in memory, where these move
# nothing. (B, C, H*W) in between makes OpenVINO write the map out twice, 6 % of an INT8 rest_lite.
def _to_tokens(x: ir.Value) -> ir.Value:
    if x.shape is None or not isinstance(x.shape[1], int):
        raise InvariantError(f"{x.name} has shape {x.shape}, expected a known number of channels")
    rows = op.Transpose(x, perm=[0, 2, 3, 1])
    return op.Reshape(rows, op.Constant(value_ints=[0, -1, x.shape[1]]))


def _to_grid(tokens: ir.Value, like: ir.Value) -> ir.Value:
    rows = op.Gather(op.Shape(like), op.Constant(value_ints=[0, 2, 3, 1]))
    return op.Transpose(op.Reshape(tokens, rows), perm=[0, 3, 1, 2])


def _depth_to_space(x: ir.Value, like: ir.Value, ratio: int) -> ir.Value:
    # CRD is PyTorch's order of channels. Cut off is nothing where the ratio divides the size.
    fine = op.DepthToSpace(x, blocksize=ratio, mode="CRD")
    starts, axes = op.Constant(value_ints=[0, 0]), op.Constant(value_ints=[2, 3])
    return op.Slice(fine, starts, op.Shape(like, start=2), axes)


def _key_share(p: ir.Value) -> ir.Value:
    # p's own type is known here; CastLike would be resolved later, without its place in the model.
    return op.Reciprocal(op.Cast(op.Shape(p, start=3), to=int(p.dtype or ir.DataType.FLOAT)))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """torch operator -> ONNX nodes, for `torch.onnx.export(custom_translation_table=...)`."""
    operators = getattr(torch.ops, NAMESPACE)
    return {
        operators.reshape.default: _reshape,
        operators.to_tokens.default: _to_tokens,
        operators.to_grid.default: _to_grid,
        operators.depth_to_space.default: _depth_to_space,
        operators.key_share.default: _key_share,
    }
