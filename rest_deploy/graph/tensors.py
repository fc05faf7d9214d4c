"""Shapes and types of all tensors of a graph, at one shape of its input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

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
        inferred = _inferred(fixed)
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
        for tensor in fixed.graph.initializer
    }
    return found


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """Shape inference, in as many rounds as it needs: it takes the bounds of a Slice from constants
    only, so known shapes that the graph asks for (Shape) become constants, in `model` itself."""
    while True:
        graph: onnx.GraphProto = onnx.shape_inference.infer_shapes(
            model, data_prop=True, strict_mode=True
        ).graph
        if not _state_shapes(model.graph, graph):
            return graph


def _state_shapes(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> int:
    """Replace the Shape nodes that a Slice reads by their values as far as these are known; returns
    how many."""
    bounds = {name for node in graph.node if node.op_type == "Slice" for name in node.input[1:]}
    dims = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    stated = [
        node
        for node in graph.node
        if node.op_type == "Shape" and node.output[0] in bounds and node.input[0] in dims
    ]
    for node in stated:
        ends = {each.name: each.i for each in node.attribute}
        values = dims[node.input[0]][ends.get("start", 0) : ends.get("end")]
        graph.initializer.append(
            numpy_helper.from_array(np.array(values, np.int64), node.output[0])
        )
        graph.node.remove(node)
    return len(stated)
