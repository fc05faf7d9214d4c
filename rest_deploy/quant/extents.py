"""How far the values of a tensor reach: largest magnitude, mean and number of values per channel.

Reduced inside ONNX Runtime, in the graph that makes the tensors: what leaves it is one number a
channel, so that looking costs little beside computing, and nothing grows with the number of images.
Any mix of image sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.errors import InputError, InvariantError
from rest_deploy.quant.replay import Arrays, Batches, Phase, Progress, named_values, replay

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceSum", "Size")


@dataclass
class Extent:
    """Running reach of one tensor, per channel; a tensor without channels has one."""

    channel_largest: Float32 = field(default_factory=lambda: np.zeros(1, np.float32))
    channel_sum: Float64 = field(default_factory=lambda: np.zeros(1))
    values: int = 0

    @property
    def largest(self) -> float:
        """Of all channels; NaN when any value was NaN or infinite."""
        return float(self.channel_largest.max())

    @property
    def channel_mean(self) -> Float64:
        """Mean of each channel over everything seen."""
        return self.channel_sum / max(1, self.values // len(self.channel_sum))

    def add(self, high: Float32, low: Float32, total: Float32, values: int) -> None:
        """Take one batch in: greatest and least value and sum, (B, C) each or one number."""
        largest = np.maximum(high, -low)
        # A reduction may step over a NaN when it compares; when it adds, it cannot.
        finite = np.isfinite(total) & np.isfinite(largest)
        largest = np.where(finite, largest, np.float32(np.nan))
        channels = largest.shape[-1] if largest.ndim else 1
        largest, total = largest.reshape(-1, channels), total.reshape(-1, channels)
        self.channel_largest = np.maximum(self.channel_largest, largest.max(axis=0))
        self.channel_sum = self.channel_sum + total.sum(axis=0, dtype=np.float64)
        self.values += values

    def state(self) -> Arrays:
        """What `restore` needs to go on."""
        return {
            "channel_largest": self.channel_largest,
            "channel_sum": self.channel_sum,
            "values": np.array(self.values),
        }

    def restore(self, state: Arrays) -> None:
        self.channel_largest = np.asarray(state["channel_largest"], np.float32)
        self.channel_sum = np.asarray(state["channel_sum"], np.float64)
        self.values = int(np.asarray(state["values"], np.int64))


def measure(
    model: ir.Model,
    tensors: Mapping[str, int | None],
    batches: Batches,
    *,
    progress: Progress = lambda _done: None,
    phase: Phase | None = None,
) -> dict[str, Extent]:
    """Run `batches` through `model` and measure `tensors`: name -> axis of the channels, None for
    a tensor without. The model is not changed.

    A NaN or infinite value makes the largest of its channel NaN: see `check_finite`.
    """
    extents = {name: Extent() for name in tensors}

    def take(outputs: Sequence[npt.NDArray[np.generic]]) -> None:
        for index, extent in enumerate(extents.values()):
            found = outputs[index * len(REDUCTIONS) : (index + 1) * len(REDUCTIONS)]
            high, low, total = (array.astype(np.float32, copy=False) for array in found[:3])
            extent.add(high, low, total, int(np.asarray(found[3], np.int64)))

    replay(_with_reductions(model, tensors), batches, take, extents, progress, phase)
    return extents


def largest_values(model: ir.Model, batches: Batches) -> dict[str, float]:
    """Largest magnitude of every float tensor of the graph; NaN where any value is not finite."""
    names = [
        value.name or ""
        for node in model.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT
    ]
    found = measure(model, dict.fromkeys(names), batches)
    return {name: extent.largest for name, extent in found.items()}


def check_finite(extents: Mapping[str, Extent]) -> None:
    """Raise `InputError` naming the first tensor that had a NaN or infinite value."""
    for name, extent in extents.items():
        if not np.isfinite(extent.largest):
            raise InputError(f"{name}: the tensor has NaN or infinite values on these images")


def _with_reductions(model: ir.Model, tensors: Mapping[str, int | None]) -> ir.Model:
    """A copy whose outputs are the `REDUCTIONS` of each tensor, in their order."""
    twin = ir.from_proto(ir.to_proto(model))
    graph = twin.graph
    values = named_values(graph)
    graph.outputs.clear()
    for name, axis in tensors.items():
        if name not in values:
            raise InvariantError(f"the graph has no tensor {name}")
        for op_type in REDUCTIONS:
            node = _reduction(graph, op_type, values[name], axis)
            graph.append(node)
            graph.outputs.append(node.outputs[0])
    return twin


def _reduction(graph: ir.Graph, op_type: str, value: ir.Value, axis: int | None) -> ir.Node:
    name = f"{value.name}.{op_type}"
    if value.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}:
        value = _wide(graph, value)
    if op_type == "Size":
        node = ir.node(op_type, [value], name=name)
        dtype, shape = ir.DataType.INT64, ir.Shape(())
    else:
        inputs = [value] if axis is None else [value, _axes(graph, value, axis)]
        attributes = {"keepdims": 0, "noop_with_empty_axes": 0 if axis is None else 1}
        node = ir.node(op_type, inputs, attributes=attributes, name=name)
        dtype, shape = ir.DataType.FLOAT, ir.Shape(() if axis is None else ("batch", None))
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{name}.out", dtype, shape
    return node


def _wide(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A 16-bit tensor in float32, which reductions on a CPU want."""
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
    cast.outputs[0].shape = value.shape
    graph.append(cast)
    return cast.outputs[0]


def _axes(graph: ir.Graph, value: ir.Value, channel: int) -> ir.Value:
    """All axes but the images' and the channels', as a constant that tensors of one rank share.

    ONNX Runtime reduces within an image up to eight times as fast as over all images at once.
    """
    if value.shape is None:
        raise InvariantError(f"{value.name} has no known rank")
    rank = len(value.shape)
    axes = [axis for axis in range(1, rank) if axis != channel % rank]
    name = f"extents.axes.{'.'.join(map(str, axes))}"
    if name not in graph.initializers:
        constant = ir.val(name, const_value=ir.tensor(np.array(axes, np.int64), name=name))
        graph.register_initializer(constant)
    return graph.initializers[name]
