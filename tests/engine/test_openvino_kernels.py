"""What OpenVINO computes in: the names it gives to layers, and what it really ran."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx.helper import make_graph, make_node

from rest_deploy import verbs
from rest_deploy.engine.executed import Kernel
from rest_deploy.engine.openvino_kernels import UNSEEN, computed, kernels
from rest_deploy.errors import installed
from rest_deploy.graph.roles import place

GRAPH = make_graph(
    [
        make_node("Conv", ["x", "w"], ["c.out"], "stem.conv1.Conv"),
        make_node("MatMul", ["c.out", "q"], ["q.out"], "stage1.0.attn.q.MatMul"),
        make_node("Add", ["q.out", "b"], ["a.out"], "stage1.0.attn.q.Add"),
        make_node("MatMul", ["a.out", "k"], ["s.out"], "stage1.0.attn.scores.MatMul"),
        make_node("Softmax", ["s.out"], ["p.out"], "stage1.0.attn.Softmax"),
        make_node("MatMul", ["p.out", "v"], ["z.out"], "stage1.0.attn.context.MatMul"),
        make_node("Gemm", ["z.out", "h"], ["logits"], "head.Gemm"),
    ],
    "g",
    [],
    [],
)
CONV, Q, SCORES, CONTEXT, HEAD = (n.name for n in GRAPH.node if n.op_type in
                                  {"Conv", "MatMul", "Gemm"})  # fmt: skip


def ran(operator: str, precision: str, parts: tuple[str, ...]) -> Kernel:
    return Kernel("", operator, precision, parts, ())


def kinds(*executed: Kernel) -> dict[str, str]:
    return dict(computed(GRAPH, executed))


def test_names_of_fused_layers() -> None:
    found = kinds(
        ran("Convolution", "int8", (f"{CONV}/WithoutBiases", "Multiply_1", CONV, "stem.Relu")),
        ran("FullyConnected", "bf16", ("stage1.0.attn.q.Add",)),
        ran("MatMul", "fp32", (SCORES,)),
        ran("FullyConnected", "int8", ("logits",)),
    )
    assert found == {CONV: "int8", Q: "bf16", SCORES: "float", CONTEXT: UNSEEN, HEAD: "int8"}


def test_what_computes_nothing_proves_nothing() -> None:
    found = kinds(
        ran("Const", "int8", (Q,)),
        ran("Transpose", "int8", (f"{SCORES}/transpose_b",)),
        ran("Eltwise", "int8", ("stage1.0.attn.q.Add",)),
    )
    assert set(found.values()) == {UNSEEN}


def test_a_chain() -> None:
    """The type of a Subgraph is that of its first product."""
    names = (SCORES, "stage1.0.attn.Softmax", CONTEXT)
    assert kinds(ran("Subgraph", "fp32", names))[CONTEXT] == "float"
    found = kinds(ran("Subgraph", "int8", names))
    assert (found[SCORES], found[CONTEXT]) == ("int8", "float")
    between = (*names, "stage1.0.attn.Softmax.out.QuantizeLinear")
    assert kinds(ran("Subgraph", "int8", between))[CONTEXT] == "int8"


def test_a_shared_product_has_no_bias() -> None:
    """An Add that is not the only reader is no part of the layer."""
    graph = onnx.GraphProto()
    graph.CopyFrom(GRAPH)
    graph.node.append(make_node("Relu", ["q.out"], ["r.out"], "r"))
    executed = [ran("FullyConnected", "int8", ("stage1.0.attn.q.Add",))]
    assert dict(computed(graph, executed))[Q] == UNSEEN


# --- what really ran ------------------------------------------------------------------------------

needs_openvino = pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")


def roles(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for name, kind in kernels(path):
        here = place(name)
        found.setdefault(here.role if here else name, Counter())[kind] += 1
    return {role: dict(counts) for role, counts in found.items()}


FLOATS = {"pa": 4, "sr": 4, "transform": 4, "offset": 1}
QUANTIZED = {"stem": 3, "patch": 3, "qkv": 14, "proj": 4, "mlp": 10, "head": 1}


@needs_openvino
def test_of_a_float_model(exported_nano: Path) -> None:
    """Every layer is found; the negative control of the INT8 test."""
    all_of_them = FLOATS | QUANTIZED | {"scores": 5, "context": 5}
    assert roles(exported_nano) == {role: {"float": n} for role, n in all_of_them.items()}


@needs_openvino
@pytest.mark.parametrize("recipe", ["int8", "int8-openvino"])
def test_of_an_int8_model(trained_nano: Path, tmp_path: Path, recipe: str) -> None:
    request = verbs.Request(
        precision="int8", recipe=recipe, images=verbs.Images(limit=16), gate=False
    )
    path = Path(verbs.quantize(trained_nano, request, workspace=tmp_path).path)
    found = roles(path)
    assert {role: found[role] for role in QUANTIZED} == {
        role: {"int8": n} for role, n in QUANTIZED.items()
    }
    assert {role: found[role] for role in FLOATS} == {r: {"float": n} for r, n in FLOATS.items()}
    products = found["scores"], found["context"]
    if recipe == "int8":
        assert products == ({"float": 5}, {"float": 5})
    else:
        assert products == ({"int8": 5}, {"int8": 1, "float": 4})
