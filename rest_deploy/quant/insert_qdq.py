"""Float graph + scales -> Q/DQ graph: the precision lives in the file, for every runtime.

An activation gets one QuantizeLinear/DequantizeLinear pair, shared by all readers; a weight is
stored quantized, behind a DequantizeLinear with one scale per output channel. Biases stay float.
Nodes of a role that the recipe leaves out are not touched.

Every zero point is 0. An activation's gives QuantizeLinear its type. An INT8 weight's has the shape
of its scales. ONNX lets it be left out; but where ONNX Runtime makes signed weights unsigned
(`session.x64quantprecision`) it puts a scalar in the place of a missing one, and then refuses its
own node. FP8 weights have none: nothing rewrites them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.errors import InputError
from rest_deploy.graph.roles import Place, place
from rest_deploy.quant import pairs
from rest_deploy.quant.probe import output_axis
from rest_deploy.quant.recipe import Recipe
from rest_deploy.quant.scales import LARGEST, Format, weight_scales
from rest_deploy.quant.table import RoundedWeight

Float32 = npt.NDArray[np.float32]

STORED: dict[Format, ir.DataType] = {
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
}

FP8_OPSET = 19
"""The first whose QuantizeLinear knows E4M3."""


@dataclass
class Placement:
    """What the pass did: nodes quantized per role, and why others of the graph were not."""

    quantized: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)

    def skip(self, role: str, reason: str) -> None:
        self.skipped.setdefault(role, Counter())[reason] += 1


@dataclass(frozen=True)
class Layer:
    """A GEMM or convolution with a constant weight that a recipe quantizes."""

    node: ir.Node
    place: Place
    weight: str

    @property
    def role(self) -> str:
        return self.place.role


def observed_tensors(model: ir.Model, recipe: Recipe) -> dict[str, int | None]:
    """The activations that need a scale: name -> channel axis (-1 for tokens, 1 for maps, None for
    an operand of an attention product: its axes are heads, tokens and keys)."""
    tensors: dict[str, int | None] = {}
    for node, _ in _wanted(model, recipe):
        for value in _activations(node):
            channels = 1 if node.op_type == "Conv" else -1
            tensors[value.name or ""] = channels if _has_weight(node) else None
    return tensors


def layers(model: ir.Model, recipe: Recipe) -> dict[str, dict[str, Layer]]:
    """Per observed tensor, the layers that read it: node name -> layer.

    Tensors of an attention product alone have an entry without layers.
    """
    found: dict[str, dict[str, Layer]] = {}
    for node, here in _wanted(model, recipe):
        weight = node.inputs[1]
        for value in _activations(node):
            readers = found.setdefault(value.name or "", {})
            if weight is not None and _has_weight(node):
                readers[node.name or ""] = Layer(node, here, weight.name or "")
    return found


def _wanted(model: ir.Model, recipe: Recipe) -> list[tuple[ir.Node, Place]]:
    """The nodes the recipe asks for, in graph order."""
    found = []
    for node in model.graph:
        here = place(node.name or "")
        if here is not None and node.op_type in {"MatMul", "Gemm", "Conv"} and recipe.wants(here):
            found.append((node, here))
    return found


def insert_qdq(
    model: ir.Model,
    recipe: Recipe,
    thresholds: Mapping[str, float],
    input_means: Mapping[str, npt.NDArray[np.float64]] | None = None,
    rounded: Mapping[str, RoundedWeight] | None = None,
) -> Placement:
    """Quantize in place. thresholds: largest magnitude kept, per activation.

    input_means: per-channel means of the activations; with them, and a recipe that asks for it,
    the mean error of each quantized weight is taken out of the node's bias (Nagel et al.,
    "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721).
    rounded: weights that are not to be rounded to nearest, by initializer.
    Raises `InputError` when a threshold is missing.
    """
    if recipe.format == "fp8" and (model.opset_imports.get("", 0)) < FP8_OPSET:
        raise InputError(
            f"FP8 needs opset {FP8_OPSET}; the graph has {model.opset_imports.get('')}",
            hint="export again with --opset 20",
        )
    report = Placement()
    quantized: dict[str, ir.Value] = {}
    for node in list(model.graph):
        here = place(node.name or "")
        if here is None or node.op_type not in {"MatMul", "Gemm", "Conv"}:
            continue
        if not recipe.wants(here):
            left = here.role in recipe.quantize
            report.skip(here.role, "float_places of the recipe" if left else "role kept in float")
            continue
        weight = node.inputs[1]
        assert weight is not None
        means, constant = None, weight.is_initializer()
        if constant:
            if recipe.corrections.bias and input_means is not None:
                means = input_means.get(_activations(node)[0].name or "")
            _quantize_weight(model, node, recipe, means, (rounded or {}).get(weight.name or ""))
        for index, value in enumerate(node.inputs[:2]):
            if value is None or (index == 1 and constant):
                continue
            name = value.name or ""
            if name not in quantized:
                if name not in thresholds:
                    raise InputError(
                        f"the calibration table has no range for {name}",
                        hint="calibrate this model with this recipe: rest-deploy calibrate",
                    )
                quantized[name] = _pair(model, value, thresholds[name], recipe.format)
            node.replace_input_with(index, quantized[name])
        report.quantized[here.role] += 1
    return report


def quantized_weight(
    weight: Float32, axis: int, recipe: Recipe
) -> tuple[npt.NDArray[np.generic], Float32]:
    """Stored values and one scale per output channel (on `axis`)."""
    levels = LARGEST[recipe.format]
    shape = [1] * weight.ndim
    shape[axis] = -1

    def nearest(scales: npt.NDArray[np.floating]) -> npt.NDArray[np.int8]:
        ratio = weight / scales.astype(np.float32).reshape(shape)
        return np.clip(np.round(ratio), -levels, levels).astype(np.int8)

    scales = weight_scales(weight, axis, levels)
    if recipe.exact_pairs:
        stored, scales = pairs.fit(weight, axis, scales, nearest)
        return stored, scales.astype(np.float32)
    scales = scales.astype(np.float32)
    if recipe.format == "fp8":
        ratio = np.clip(weight / scales.reshape(shape), -levels, levels)
        return ratio.astype(ml_dtypes.float8_e4m3fn), scales
    return nearest(scales), scales


def _activations(node: ir.Node) -> list[ir.Value]:
    """Inputs that are not weights: one, or both of an attention product."""
    return [v for v in node.inputs[:2] if v is not None and not v.is_initializer()]


def _has_weight(node: ir.Node) -> bool:
    """Not a product of two activations."""
    return node.inputs[1] is not None and node.inputs[1].is_initializer()


def _quantize_weight(
    model: ir.Model,
    node: ir.Node,
    recipe: Recipe,
    means: npt.NDArray[np.float64] | None,
    rounded: RoundedWeight | None,
) -> None:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    name = weight.name or ""
    value = weight.const_value.numpy().astype(np.float32)
    axis = output_axis(node)
    stored, scales = quantized_weight(value, axis, recipe)
    if rounded is not None:
        stored = rounded.array()
        scales = np.asarray(rounded.scales, np.float32) if rounded.scales else scales
    if means is not None:
        shape = [1] * value.ndim
        shape[axis] = -1
        error = stored.astype(np.float64) * scales.reshape(shape) - value
        _correct_bias(node, _mean_output(node, error, means))
    q = _initializer(model, f"{name}.{recipe.format}", stored)
    scale = _initializer(model, f"{name}.scale", scales)
    inputs = [q, scale]
    if recipe.format == "int8":  # written out: see the head of this module
        inputs.append(_initializer(model, f"{name}.zero_point", np.zeros_like(scales, np.int8)))
    dequantize = ir.node("DequantizeLinear", inputs, attributes={"axis": axis},
                         name=f"{node.name}.weight.DequantizeLinear")  # fmt: skip
    dequantize.outputs[0].name = f"{node.name}.weight"
    dequantize.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(node, dequantize)
    node.replace_input_with(1, dequantize.outputs[0])
    if not weight.uses():
        model.graph.initializers.pop(name)


def _pair(model: ir.Model, value: ir.Value, threshold: float, target: Format) -> ir.Value:
    """value -> QuantizeLinear -> DequantizeLinear, right behind its producer."""
    name = value.name or ""
    scale = _initializer(
        model, f"{name}.scale", np.asarray(max(threshold, 1e-30) / LARGEST[target], np.float32)
    )
    dtype = ml_dtypes.float8_e4m3fn if target == "fp8" else np.int8
    zero = _initializer(model, f"{name}.zero_point", np.zeros((), dtype))
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.QuantizeLinear")
    quantize.outputs[0].name, quantize.outputs[0].dtype = f"{name}.q", STORED[target]
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero],
                         name=f"{name}.DequantizeLinear")  # fmt: skip
    dequantize.outputs[0].name, dequantize.outputs[0].dtype = f"{name}.dq", ir.DataType.FLOAT
    producer = value.producer()
    if producer is None:  # the image itself
        model.graph.insert_before(next(iter(model.graph)), [quantize, dequantize])
    else:
        model.graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _initializer(model: ir.Model, name: str, value: npt.NDArray[np.generic]) -> ir.Value:
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    made = ir.val(name, const_value=ir.tensor(value, name=name))
    model.graph.register_initializer(made)
    return made


def _mean_output(
    node: ir.Node, error: npt.NDArray[np.float64], means: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Mean over the outputs that a weight error causes, given the inputs' means. (C_out,)"""
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        read = means.reshape(groups, -1).repeat(len(error) // groups, axis=0)  # (C_out, C_in)
        result = np.einsum("oihw,oi->o", error, read)
    elif output_axis(node) == 0:
        result = error @ means
    else:
        result = means @ error
    return np.asarray(result, np.float64)


def _correct_bias(node: ir.Node, mean_error: npt.NDArray[np.float64]) -> None:
    """Subtract `mean_error` from the bias; a node without one is left as it is."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None and node.op_type == "MatMul":
        adds = [use.node for use in node.outputs[0].uses() if use.node.op_type == "Add"]
        constants = [v for add in adds for v in add.inputs if v is not None and v.is_initializer()]
        bias = constants[0] if len(constants) == 1 else None
    if bias is None or bias.const_value is None or len(bias.uses()) != 1:
        return
    corrected = bias.const_value.numpy() - mean_error
    bias.const_value = ir.tensor(corrected.astype(np.float32), name=bias.name)
