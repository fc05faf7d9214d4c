"""Float32 graph -> typed FP16 or BF16 graph: the precision lives in the tensors' types.

A strongly typed TensorRT network, ONNX Runtime and OpenVINO then compute what the file says. The
attention-map chain stays float32 between Cast nodes: an entry of softmax - 1/M squared is of order
1/M^2, below FP16's smallest normal number from 128 keys on, and without the island BF16 loses more
than three times as much (tests/graph/test_precision.py). LayerNormalization stays one operator:
its definition computes mean and variance in float32 (stash_type 1) whatever its input. Pixels are
normalized in float32 and rounded once, as normalized images are; so are softmax and L2 norm at the
end, whose sums have hundreds of terms.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.errors import InputError

Sixteen = Literal["fp16", "bf16"]
IoType = Literal["float32", "float16"]

TYPES: dict[Sixteen, ir.DataType] = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
IO_TYPES: dict[IoType, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
}

FP16_LARGEST = 65504.0

BF16_OPSET = 22
"""The first where Conv, ReduceMean and their kin are defined for BF16."""

ISLAND = re.compile(
    r".*\.attn\.(Softmax|norm\..*|level\.(?!Mul_1$).*)|(pixels|probabilities|unit_length)\..*"
)
"""Names of the nodes that stay float32: softmax, the folded InstanceNorm, the level of v, the
normalization of pixels, and what follows the head or the embedding."""

_TYPED = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def to_sixteen_bit(
    model: ir.Model, precision: Sixteen, *, io_type: IoType = "float32"
) -> dict[str, int]:
    """Retype in place: every float32 tensor outside the islands, with Casts at their shores.

    io_type: of the float input and of the outputs. Returns how many nodes compute in which type.
    Raises `InputError` naming a weight that FP16 cannot hold, or an opset too old for BF16.
    """
    target = TYPES[precision]
    opset = model.opset_imports.get("", 0)
    if precision == "bf16" and opset < BF16_OPSET:
        raise InputError(
            f"BF16 needs opset {BF16_OPSET}; the graph has {opset}",
            hint=f"export again with --opset {BF16_OPSET}",
        )
    if precision == "fp16":
        _check_weights(model)
    graph = model.graph
    casts: dict[tuple[str, ir.DataType], ir.Value] = {}
    types: Counter[str] = Counter()
    made: dict[str, ir.DataType] = {}
    for entry in graph.inputs:
        if entry.dtype not in _TYPED:
            continue  # pixels
        entry.dtype = IO_TYPES[io_type]
        made[entry.name or ""] = IO_TYPES[io_type]
    for node in list(graph):
        floats = [v for v in node.inputs if v is not None and _is_float(v, made)]
        inside = ISLAND.fullmatch(node.name or "") is not None
        wanted = ir.DataType.FLOAT if inside else target
        for index, value in enumerate(node.inputs):
            if value is not None and value in floats:
                node.replace_input_with(index, _as(model, node, value, wanted, made, casts))
        outputs = [v for v in node.outputs if v.dtype in _TYPED]
        if node.op_type == "Cast" and outputs:
            _retype_cast(node, wanted)
        for value in outputs:
            value.dtype = wanted
            made[value.name or ""] = wanted
        if outputs:
            types[wanted.name.lower()] += 1
    _cast_outputs(model, IO_TYPES[io_type], made)
    return dict(types)


def emulate(model: ir.Model) -> int:
    """Typed graph -> float32 operators with every 16-bit result rounded, in place.

    For proofs on a backend without 16-bit kernels: ONNX Runtime's CPU provider would run such
    operators in float32 and skip the rounding between them. Accumulation in float32, as on tensor
    cores. Returns the number of roundings.
    """
    sixteen = set(TYPES.values())
    count = 0
    for node in list(model.graph):
        if node.op_type == "Cast" or not any(v.dtype in sixteen for v in node.outputs):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and _dtype(value) in sixteen:
                up = _cast(value, ir.DataType.FLOAT, f"{node.name}.up_{index}")
                model.graph.insert_before(node, up)
                node.replace_input_with(index, up.outputs[0])
        for output in node.outputs:
            if output.dtype not in sixteen:
                continue
            narrow = output.dtype
            assert narrow is not None
            readers = [(use.node, use.idx) for use in output.uses()]
            down = _cast(output, narrow, f"{node.name}.down")
            model.graph.insert_after(node, down)
            output.dtype = ir.DataType.FLOAT
            for reader, index in readers:
                reader.replace_input_with(index, down.outputs[0])
            for index, result in enumerate(model.graph.outputs):
                if result is output:
                    model.graph.outputs[index] = down.outputs[0]
                    down.outputs[0].name, output.name = output.name, f"{output.name}.wide"
            count += 1
    return count


def beyond_fp16(largest: Mapping[str, float]) -> list[str]:
    """What overflows, worst first. largest: by tensor name, of real images."""
    found = [(name, value) for name, value in largest.items() if not value <= FP16_LARGEST]
    found.sort(key=lambda item: (math.isnan(item[1]), item[1]), reverse=True)
    return [f"{name} reaches {value:.3g}" for name, value in found]


def _check_weights(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
            continue
        reach = float(np.abs(value.const_value.numpy()).max(initial=0.0))
        if not reach <= FP16_LARGEST:
            raise InputError(
                f"the weight {name} reaches {reach:.3g}; FP16 ends at {FP16_LARGEST:.0f}",
                hint="--bf16 has float32's range",
            )


def _is_float(value: ir.Value, made: Mapping[str, ir.DataType]) -> bool:
    if value.const_value is not None:
        return value.const_value.dtype == ir.DataType.FLOAT
    return value.name in made


def _as(
    model: ir.Model,
    node: ir.Node,
    value: ir.Value,
    wanted: ir.DataType,
    made: Mapping[str, ir.DataType],
    casts: dict[tuple[str, ir.DataType], ir.Value],
) -> ir.Value:
    """`value` in the wanted type: itself, a converted constant, or one shared Cast."""
    name = value.name or ""
    if value.const_value is not None:
        return value if wanted == ir.DataType.FLOAT else _constant(model, value, wanted)
    if made[name] == wanted:
        return value
    key = (name, wanted)
    if key not in casts:
        cast = _cast(value, wanted, f"{name}.to_{wanted.name.lower()}")
        model.graph.insert_before(node, cast)
        casts[key] = cast.outputs[0]
    return casts[key]


def _cast(value: ir.Value, wanted: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], attributes={"to": wanted}, name=name)
    cast.outputs[0].name, cast.outputs[0].dtype = f"{name}.out", wanted
    cast.outputs[0].shape = value.shape
    return cast


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.const_value.dtype if value.const_value is not None else value.dtype


def _constant(model: ir.Model, value: ir.Value, wanted: ir.DataType) -> ir.Value:
    name = f"{value.name}.{wanted.name.lower()}"
    if name not in model.graph.initializers:
        assert value.const_value is not None
        array: npt.NDArray[np.generic] = value.const_value.numpy().astype(wanted.numpy())
        model.graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
    return model.graph.initializers[name]


def _retype_cast(node: ir.Node, wanted: ir.DataType) -> None:
    """A Cast of integers to float (the key count) makes what its reader computes in."""
    node.attributes["to"] = ir.AttrInt64("to", int(wanted))


def _cast_outputs(model: ir.Model, wanted: ir.DataType, made: Mapping[str, ir.DataType]) -> None:
    for index, output in enumerate(model.graph.outputs):
        name, shape = output.name or "", output.shape
        if made[name] != wanted:
            output.name = f"{name}.inner"
            cast = _cast(output, wanted, f"{name}.Cast")
            cast.outputs[0].name, cast.outputs[0].shape = name, shape
            model.graph.append(cast)
            model.graph.outputs[index] = cast.outputs[0]
    _drop_unused(model)


def _drop_unused(model: ir.Model) -> None:
    outputs: Iterable[ir.Value] = model.graph.outputs
    kept = {value.name for value in outputs}
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and n not in kept]:
        del model.graph.initializers[name]
