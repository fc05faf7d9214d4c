"""What OpenVINO's kernels compute in, read from the graph that it executes.

The file asks, the plugin decides: an INT8 layer may run in float32, a float32 one in bf16. The
execution graph names, for each operation, its type and the layers of the file that are fused in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rest_deploy.engine.executed import Kernel
from rest_deploy.engine.openvino import Inference, OpenVinoRunner
from rest_deploy.engine.openvino_profile import operation

if TYPE_CHECKING:
    import onnx

COMPUTING = frozenset({
    "Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "Subgraph",
    "ScaledDotProductAttention",
})  # fmt: skip
"""Layer types that multiply matrices. A Subgraph is a compiled chain; an attention may be one."""

UNSEEN = "not shown"
"""Of a layer that no operation of the execution graph names: nothing proves what it computes in."""


def kernels(path: Path, precision: Inference = "f32") -> list[tuple[str, str]]:
    """(node name, "int8", "bf16", "float" or `UNSEEN`) of every GEMM and convolution of the file.

    Raises what `OpenVinoRunner` does.
    """
    import onnx

    runner = OpenVinoRunner(path, precision=precision)
    found = [operation(op) for op in runner.executed().get_ordered_ops()]
    runner.close()
    return computed(onnx.load(path, load_external_data=False).graph, found)


def computed(graph: onnx.GraphProto, executed: Iterable[Kernel]) -> list[tuple[str, str]]:
    """`kernels` of a graph and of what was executed for it.

    Of a chain compiled into one Subgraph only the type of its first product is told. A later one
    counts as INT8 only where the chain quantizes on the way.
    """
    aliases = _aliases(graph)
    kinds: dict[str, str] = {}
    for kernel in executed:
        if kernel.operator not in COMPUTING:
            continue
        kind = "float" if kernel.precision == "fp32" else kernel.precision
        names = [part.split("/")[0] for part in kernel.parts]
        layers = dict.fromkeys(aliases[name] for name in names if name in aliases)
        requantized = any(_quantizes(name) for name in names)
        for index, layer in enumerate(layers):
            later = index > 0 and kernel.operator == "Subgraph"
            kinds[layer] = "float" if later and kind == "int8" and not requantized else kind
    weighty = [node.name for node in graph.node if node.op_type in _WEIGHTY]
    return [(name, kinds.get(name, UNSEEN)) for name in weighty]


_WEIGHTY = {"MatMul", "Gemm", "Conv"}


def _quantizes(name: str) -> bool:
    return name.endswith("QuantizeLinear") or name.startswith("FakeQuantize")


def _aliases(graph: onnx.GraphProto) -> dict[str, str]:
    """What OpenVINO may call a layer -> its node name: the node, its output, and the bias added to
    it, whose name a fused layer keeps instead of its own."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        if node.op_type not in _WEIGHTY:
            continue
        after = readers.get(node.output[0], [])
        bias = [reader for reader in after if reader.op_type == "Add" and len(after) == 1]
        for name in (node.name, *node.output, *(r.name for r in bias),
                     *(out for r in bias for out in r.output)):  # fmt: skip
            found[name] = node.name
    return found
