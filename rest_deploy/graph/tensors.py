"""Shapes and types of all tensors of a graph, at one shape of its input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from rest_deploy.contracts import Dims
from rest_deploy.errors import ArtifactError
from rest_deploy.layout import FLOAT, UINT8

BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
        17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4}  # fmt: skip
"""Of an element, by onnx.TensorProto's number of its type."""


@dataclass(frozen=True)
class Tensor:
    """dims: all known; type: onnx.TensorProto's number."""

    dims: tuple[int, ...]
    type: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.elements * BITS[self.type] // 8


def at_shape(model: onnx.ModelProto, shape: Dims) -> dict[str, Tensor]:
    """Name -> tensor of everything that the graph reads or makes, its input being of `shape`
    (batch, channels, height, width), put as a graph of pixels takes it.

    What shape inference does not tell is not there. `model` is not changed.
    Raises `ArtifactError` when the graph has not one input (batch, channels, height, width).
    """
    inputs = {value.name for value in model.graph.input} - {
        tensor.name for tensor in model.graph.initializer
    }
    images = [value for value in model.graph.input if value.name in inputs]
    ranks = [len(value.type.tensor_type.shape.dim) for value in images]
    if ranks != [4]:
        raise ArtifactError(
            f"the graph has inputs {', '.join(sorted(inputs)) or 'none'} of {ranks} axes; expected "
            "one of four: batch, channels, height, width"
        )
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    image = next(value for value in fixed.graph.input if value.name in inputs)
    pixels = image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    placed = (UINT8 if pixels else FLOAT).shape(shape)
    for dim, size in zip(image.type.tensor_type.shape.dim, placed, strict=True):
        dim.dim_value = size
    for output in fixed.graph.output:
        # Forgotten with the names that were inferred: they are inferred again, as numbers.
        output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"the shapes of the graph do not follow from an input of {'x'.join(map(str, shape))}: "
            f"{reason}"
        ) from error
    found = {
        value.name: Tensor(tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        for kind in (value.type.tensor_type,)
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
    }
    found |= {
        tensor.name: Tensor(tuple(tensor.dims), tensor.data_type)
        for tensor in model.graph.initializer
    }
    return found
