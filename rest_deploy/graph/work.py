"""FLOPs and bytes of every node of a graph, at one input shape.

A multiplication with its addition is 2 FLOPs; papers on networks print half of that. Counted are
the products and convolutions, as in papers: everything else is held up by memory, and its bytes are
counted. Bytes are what a node reads and writes once, weights with it, in the graph's types. A
tensor behind DequantizeLinear is read in the 8 bits before it, one that only QuantizeLinear reads
is written in the 8 bits behind it; the two are no work themselves, nor are views (Reshape).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from rest_deploy.contracts import Dims
from rest_deploy.errors import ArtifactError
from rest_deploy.graph.roles import KINDS, Kind, kind, part
from rest_deploy.graph.tensors import Tensor, at_shape

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})

FREE = VIEWS | {"Shape", "Constant"}

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})

NOWHERE = "other"
"""The part of nodes that belong to none, in a graph that is not ours."""

_PRECISIONS = {1: "fp32", 10: "fp16", 16: "bf16", 2: "int8", 3: "int8", 17: "fp8", 18: "fp8",
               19: "fp8", 20: "fp8"}  # fmt: skip
"""What is computed in, by onnx.TensorProto's number of a type."""


@dataclass(frozen=True)
class Work:
    """One node. reads and writes: tensor -> bytes. precision: of a product or convolution, what the
    graph asks for ("int8" when both of its inputs are)."""

    node: str
    operator: str
    part: str
    kind: Kind
    flops: int
    reads: Mapping[str, int]
    writes: Mapping[str, int]
    precision: str
    readers: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass(frozen=True)
class Sum:
    """Of several nodes."""

    flops: int
    bytes: int


def count(model: onnx.ModelProto, shape: Dims) -> tuple[Work, ...]:
    """Every node of `model` in its order, with an input of `shape`.

    Raises `ArtifactError` for a graph whose shapes cannot be inferred.
    """
    tensors = at_shape(model, shape)
    nodes = model.graph.node
    makers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    kept = {value.name for value in model.graph.output}
    parts = parts_of(nodes, readers)
    return tuple(
        _work(node, tensors, makers, readers, kept, parts[index])
        for index, node in enumerate(nodes)
    )


def parts_of(
    nodes: Sequence[onnx.NodeProto], readers: Mapping[str, Sequence[onnx.NodeProto]]
) -> list[str]:
    """The part of each node; one between two parts belongs to what reads it first."""
    order = {id(node): index for index, node in enumerate(nodes)}
    found = [NOWHERE] * len(nodes)
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        after = sorted(
            order[id(reader)] for name in node.output for reader in readers.get(name, ())
        )
        own = part(node.name)
        found[index] = own or next((found[i] for i in after if found[i] != NOWHERE), NOWHERE)
    return found


def joined(works: Iterable[Work]) -> Sum:
    """Of nodes that one kernel computes: what passes between them is not moved."""
    found = tuple(works)
    inside = {work.node for work in found}
    made = {name for work in found for name in work.writes}
    read = {name: size for work in found for name, size in work.reads.items() if name not in made}
    written = sum(
        sum(work.writes.values())
        for work in found
        if not work.readers or not inside.issuperset(work.readers)
    )
    return Sum(sum(work.flops for work in found), sum(read.values()) + written)


def summed(works: Iterable[Work]) -> dict[tuple[str, Kind], Sum]:
    """(part, kind) -> its nodes one by one, in the order of the graph and of `KINDS`."""
    groups: dict[str, dict[Kind, list[Work]]] = {}
    for work in works:
        groups.setdefault(work.part, {}).setdefault(work.kind, []).append(work)
    return {
        (name, each): Sum(
            sum(work.flops for work in kinds[each]), sum(work.bytes for work in kinds[each])
        )
        for name, kinds in groups.items()
        for each in KINDS
        if each in kinds
    }


def _work(
    node: onnx.NodeProto,
    tensors: Mapping[str, Tensor],
    makers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    kept: set[str],
    where: str,
) -> Work:
    reads: dict[str, int] = {}
    writes: dict[str, int] = {}
    if node.op_type not in FREE | QUANTIZERS:
        sources = [_before(name, makers) for name in node.input if name]
        reads = {name: _tensor(name, tensors, node).bytes for name in sources}
        targets = [_behind(name, readers, kept) for name in node.output if name]
        writes = {name: _tensor(name, tensors, node).bytes for name in targets}
    return Work(
        node=node.name,
        operator=node.op_type,
        part=where,
        kind=kind(node.name, node.op_type),
        flops=_flops(node, tensors),
        reads=reads,
        writes=writes,
        precision=_precision(node, tensors, makers),
        readers=tuple(_through(node, readers)),
    )


def _before(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """What is really read: the tensor before views, in 8 bits before a DequantizeLinear."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in VIEWS | {"DequantizeLinear"}:
        name = maker.input[0]
        maker = makers.get(name)
    return name


def _behind(name: str, readers: Mapping[str, Sequence[onnx.NodeProto]], kept: set[str]) -> str:
    """What is really written: the 8-bit tensor where nothing else reads the other."""
    seen: str = name
    while seen not in kept and len(after := readers.get(seen, ())) == 1:
        seen = after[0].output[0]
        if after[0].op_type == "QuantizeLinear":
            return seen
        if after[0].op_type not in VIEWS:
            break
    return name


def _through(
    node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]
) -> dict[str, None]:
    """Names of the nodes that compute with what this one makes, past views, Q and DQ."""
    found: dict[str, None] = {}
    for name in node.output:
        for reader in readers.get(name, ()):
            passed = reader.op_type in VIEWS | QUANTIZERS
            found |= _through(reader, readers) if passed else {reader.name: None}
    return found


def _flops(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int:
    if node.op_type == "MatMul":
        inner = _tensor(node.input[0], tensors, node).dims[-1]
    elif node.op_type == "Gemm":
        transposed = any(each.name == "transA" and each.i for each in node.attribute)
        inner = _tensor(node.input[0], tensors, node).dims[0 if transposed else 1]
    elif node.op_type == "Conv":  # weights: (outputs, inputs of a group, height, width)
        inner = prod(_tensor(node.input[1], tensors, node).dims[1:])
    else:
        return 0
    return 2 * inner * _tensor(node.output[0], tensors, node).elements


def _precision(
    node: onnx.NodeProto, tensors: Mapping[str, Tensor], makers: Mapping[str, onnx.NodeProto]
) -> str:
    if node.op_type not in {"MatMul", "Gemm", "Conv"}:
        return ""
    types = {_tensor(_before(name, makers), tensors, node).type for name in node.input[:2]}
    names = {_PRECISIONS.get(number, "") for number in types}
    if len(names) == 1:
        return names.pop()
    return _PRECISIONS.get(_tensor(node.output[0], tensors, node).type, "")


def _tensor(name: str, tensors: Mapping[str, Tensor], node: onnx.NodeProto) -> Tensor:
    if name not in tensors:
        raise ArtifactError(
            f"the shape of {name} is not known (at {node.op_type} {node.name}): nothing can be "
            "counted on this graph",
            hint="rest-deploy export writes graphs whose shapes follow from the input",
        )
    return tensors[name]
