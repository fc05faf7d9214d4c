"""What a quantized graph of another tool has missed, and what it quantized that it should not have.

Works on structure alone: nothing is known of the names in a foreign graph. An attention is a
softmax with the product before it (scores) and the one after it (context); its four layers are the
nearest ones with constant weights above and below those. Facts behind the rules: docs/quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import onnx_ir as ir

from rest_deploy.contracts import Struct
from rest_deploy.quant import pairs

Item = TypeVar("Item")
Level = Literal["error", "warning"]

MOVES = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather", "Cast",
    "Identity", "Expand", "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip
"""Hand their first input on, in another form."""

ELEMENTWISE = frozenset({"Add", "Mul", "Sub", "Div"})

NORMS = frozenset({"InstanceNormalization", "ReduceMean", "Sub"})
"""Between softmax and context: the InstanceNorm in one of its forms."""

INTEGER_OPERATORS = frozenset({
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
})  # fmt: skip


class Finding(Struct, frozen=True):
    """`count` of `total` places break `rule`; `where`: names of the first."""

    rule: str
    level: Level
    count: int
    total: int
    what: str
    why: str
    where: tuple[str, ...]


class Lint(Struct, frozen=True):
    """`attentions`, of which `missed` have a float layer; weight layers and the quantized ones."""

    attentions: int
    missed: int
    layers: int
    quantized: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class WeightLayer:
    """A GEMM or convolution with a constant weight. `quantized`: weight and input are."""

    node: ir.Node
    weight: ir.Value
    quantized: bool
    per_channel: bool
    depthwise: bool

    @property
    def one_channel(self) -> bool:
        """Whether it has one output, which costs nothing in any precision."""
        shape = self.weight.shape
        return shape is not None and len(shape) == 2 and 1 in list(shape)

    @property
    def name(self) -> str:
        """The weight's, where it says more than the node's."""
        weight = self.weight.name or ""
        return weight if "." in weight else self.node.name or weight


@dataclass(frozen=True)
class Attention:
    """`between`: nodes from the softmax to the context; `layers`: q, k, v, proj as far as found."""

    softmax: ir.Node
    context: ir.Node
    between: tuple[ir.Node, ...]
    layers: dict[str, WeightLayer]

    @property
    def normed(self) -> bool:
        """Whether an InstanceNorm follows the softmax."""
        return any(node.op_type in NORMS for node in self.between)

    @property
    def name(self) -> str:
        known = self.layers.get("proj") or next(iter(self.layers.values()), None)
        return known.name if known else self.softmax.name or ""


def lint(model: ir.Model) -> Lint:
    """Examine a Q/DQ graph (or a float one: everything is missed)."""
    layers = {node: layer for node in model.graph if (layer := weight_layer(node)) is not None}
    attentions = list(_attentions(model.graph, layers))
    missed = [a for a in attentions if not all(layer.quantized for layer in a.layers.values())]
    findings = [
        *_of_attentions(attentions, missed),
        *_of_layers(list(layers.values()), attentions),
        *_of_nodes(model.graph),
    ]
    return Lint(
        attentions=len(attentions),
        missed=len(missed),
        layers=len(layers),
        quantized=sum(layer.quantized for layer in layers.values()),
        findings=tuple(found for found in findings if found.count),
    )


def weight_layer(node: ir.Node) -> WeightLayer | None:
    """`node` with its weight's origin, None when it multiplies two activations."""
    if node.op_type not in {"MatMul", "Gemm", "Conv"}:
        return None
    found = _constant(node.inputs[1])
    if found is None:
        return None
    weight, dequantize = found
    scale = dequantize.inputs[1] if dequantize is not None else None
    group = node.attributes.get_int("group", 1)
    return WeightLayer(
        node=node,
        weight=weight,
        quantized=dequantize is not None and _from(node.inputs[0], "DequantizeLinear"),
        per_channel=scale is not None and scale.const_value is not None
        and scale.const_value.size > 1,
        depthwise=group > 1,
    )  # fmt: skip


def _of_attentions(attentions: list[Attention], missed: list[Attention]) -> Iterator[Finding]:
    yield _finding(
        "attention-missed", "error", missed, attentions,
        lambda a: f"{a.name} ({', '.join(r for r, x in a.layers.items() if not x.quantized)})",
        "attentions have a float q, k, v or proj",
        "their GEMMs run in float32 and cost the speed that INT8 was for",
    )  # fmt: skip
    normed = [a for a in attentions if a.normed]
    touched = [
        a for a in normed
        if any(node.op_type == "QuantizeLinear" for node in a.between)
        or any(_from(value, "DequantizeLinear") for value in a.context.inputs)
    ]  # fmt: skip
    yield _finding(
        "map-quantized", "error", touched, normed, lambda a: a.name,
        "attentions with an InstanceNorm have a quantized map or context product",
        "the norm amplifies the rounding: 17 % logit error on a trained model",
    )  # fmt: skip


def _of_layers(layers: list[WeightLayer], attentions: list[Attention]) -> Iterator[Finding]:
    inside = {layer.node for a in attentions for layer in a.layers.values()}
    dense = [x for x in layers if not (x.depthwise or x.one_channel or _mixes_heads(x))]
    others = [layer for layer in dense if layer.node not in inside]

    def name(layer: WeightLayer) -> str:
        return layer.name

    yield _finding(
        "layer-missed", "warning", [layer for layer in others if not layer.quantized], others, name,
        "GEMMs and dense convolutions outside the attentions are float",
        "of all roles fc1 and fc2 lose least in INT8, the stem most: docs/quantization.md",
    )  # fmt: skip
    depthwise = [layer for layer in layers if layer.depthwise]
    yield _finding(
        "depthwise-quantized", "warning", [x for x in depthwise if x.quantized], depthwise, name,
        "depthwise convolutions are quantized",
        "NVIDIA's builder pads their channels fourfold and loses the fusion with sigmoid",
    )  # fmt: skip
    stored = [layer for layer in dense if layer.quantized]
    yield _finding(
        "per-tensor-weight", "warning", [x for x in stored if not x.per_channel], stored, name,
        "quantized weights have one scale for all channels",
        "one scale per output channel costs nothing at run time",
    )  # fmt: skip
    integer = [layer for layer in layers if layer.quantized and _in_bytes(layer)]
    yield _finding(
        "sums-saturate", "warning", [x for x in integer if pairs.pair_of(x.node) > pairs.LIMIT],
        integer, name,
        "quantized weights are too large for sums in 16 bits",
        "CPUs without VNNI saturate on them and answer wrongly; others, and GPUs, do not: "
        "exact_pairs = true in the recipe bounds them",
    )  # fmt: skip


def _in_bytes(layer: WeightLayer) -> bool:
    return layer.weight.dtype == ir.DataType.INT8


def _of_nodes(graph: ir.Graph) -> Iterator[Finding]:
    nodes = list(graph)
    both = [node for node in nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    yield _finding(
        "asymmetric", "error", [node for node in both if _asymmetric(node)], both, _node_name,
        "QuantizeLinear and DequantizeLinear have a zero point other than 0",
        "TensorRT accepts symmetric quantization only",
    )  # fmt: skip
    biases = [node for node in both if _stores(node, ir.DataType.INT32)]
    yield _finding(
        "bias-quantized", "error", biases, both, _node_name,
        "biases are stored as INT32 behind a DequantizeLinear",
        "TensorRT takes biases in float only",
    )  # fmt: skip
    integer = [node for node in nodes if node.op_type in INTEGER_OPERATORS]
    yield _finding(
        "integer-operators", "error", integer, nodes, _node_name,
        "operators compute in integers themselves (QLinear…, …Integer)",
        "TensorRT reads Q/DQ pairs only; quantize with the QDQ format",
    )  # fmt: skip


def _finding(
    rule: str, level: Level, found: list[Item], total: Iterable[Item],
    name: Callable[[Item], str], what: str, why: str,
) -> Finding:  # fmt: skip
    return Finding(
        rule=rule, level=level, count=len(found), total=len(list(total)), what=what, why=why,
        where=tuple(name(item) for item in found[:3]),
    )  # fmt: skip


def _attentions(graph: ir.Graph, layers: dict[ir.Node, WeightLayer]) -> Iterator[Attention]:
    for softmax in graph:
        if softmax.op_type != "Softmax":
            continue
        scores = _above(softmax.inputs[0], _is_product, through_mix=True)
        between, context = _below(softmax, _is_product)
        if scores is None or context is None:
            continue
        map_side = {softmax, *between}
        v = next((x for x in context.inputs if x is not None and x.producer() not in map_side),
                 None)  # fmt: skip
        starts = {"q": scores.inputs[0], "k": scores.inputs[1], "v": v}
        found = {
            role: layers[node]
            for role, start in starts.items()
            if (node := _above(start, layers.__contains__)) is not None
        }
        passed, proj = _below(context, layers.__contains__)
        # With one head proj may be merged into v; the next layer is then fc1, behind a norm.
        if proj is not None and all(node.op_type != "LayerNormalization" for node in passed):
            found["proj"] = layers[proj]
        yield Attention(softmax, context, between, found)


def _above(
    value: ir.Value | None, wanted: Callable[[ir.Node], bool], *, through_mix: bool = False
) -> ir.Node | None:
    """The nearest wanted node that makes `value`, behind moves and elementwise operators; with
    `through_mix` behind convolutions too (the head mix)."""
    queue = [value]
    while queue:
        current = queue.pop(0)
        node = current.producer() if current is not None else None
        if node is None:
            continue
        if wanted(node):
            return node
        if node.op_type in MOVES or (through_mix and node.op_type == "Conv"):
            queue.append(node.inputs[0])
        elif node.op_type in ELEMENTWISE:
            queue += node.inputs
    return None


def _below(
    start: ir.Node, wanted: Callable[[ir.Node], bool]
) -> tuple[tuple[ir.Node, ...], ir.Node | None]:
    """The nearest wanted node that reads `start`, and the nodes passed on the way."""
    queue, passed = [start], dict.fromkeys([start])
    while queue:
        for value in queue.pop(0).outputs:
            for use in value.uses():
                if wanted(use.node):
                    return tuple(node for node in passed if node is not start), use.node
                if use.node not in passed:
                    passed[use.node] = None
                    queue.append(use.node)
    return (), None


def _is_product(node: ir.Node) -> bool:
    """Of two activations."""
    return node.op_type == "MatMul" and weight_layer(node) is None


def _mixes_heads(layer: WeightLayer) -> bool:
    """A 1x1 convolution over the heads of a map: behind the scores, before a softmax."""
    if layer.node.op_type != "Conv":
        return False
    reader = _below(layer.node, lambda node: node.op_type not in MOVES)[1]
    return reader is not None and reader.op_type == "Softmax"


def _constant(value: ir.Value | None) -> tuple[ir.Value, ir.Node | None] | None:
    """The initializer behind a weight and the DequantizeLinear it passes, if any."""
    dequantize = None
    while value is not None:
        if value.is_initializer() or value.const_value is not None:
            return value, dequantize
        node = value.producer()
        if node is None or node.op_type not in MOVES:
            return None
        if node.op_type == "DequantizeLinear":
            dequantize = node
        value = node.inputs[0]
    return None


def _from(value: ir.Value | None, op_type: str) -> bool:
    """Whether `op_type` makes `value`, directly or behind moves."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == op_type:
            return True
        if node.op_type not in MOVES:
            return False
        value = node.inputs[0]
    return False


def _asymmetric(node: ir.Node) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None or zero.const_value is None:
        return False
    return bool(zero.const_value.numpy().any())


def _stores(node: ir.Node, dtype: ir.DataType) -> bool:
    """Whether `node` dequantizes a constant of that type."""
    value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    return value is not None and value.const_value is not None and value.const_value.dtype == dtype


def _node_name(node: ir.Node) -> str:
    return node.name or node.op_type
