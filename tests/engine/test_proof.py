"""What NVIDIA planned against what was asked for; graphs that are wrong on purpose turn it red."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import pytest

from rest_deploy.cards import load_card
from rest_deploy.contracts import Precision, Profile, Proven
from rest_deploy.engine import proof
from rest_deploy.engine.tensorrt import Options, build
from rest_deploy.engine.tensorrt_plan import PlannedLayer
from rest_deploy.errors import VerificationError
from rest_deploy.graph.precision import to_sixteen_bit
from rest_deploy.graph.roles import Place, Role, place
from rest_deploy.quant.calibrate import calibrate, quantize
from rest_deploy.quant.dataset import open_set
from rest_deploy.quant.recipe import Recipe, load_recipe
from rest_deploy.quant.table import CalibrationTable
from tests.quant.test_dataset import photo_like

PROFILE = Profile(minimum=(1, 3, 32, 32), optimum=(8, 3, 224, 224), maximum=(32, 3, 224, 224))
INT8 = load_recipe("int8")
QKV, PA = Place("stage1.0", "qkv"), Place("stem", "pa")


def layer(kind: str, computes_in: str, *nodes: str) -> PlannedLayer:
    return PlannedLayer("name", kind, (computes_in,), (), (computes_in,), nodes)


def test_requested() -> None:
    assert proof.requested([QKV, PA], "fp16", []) == {QKV: "fp16", PA: "fp16"}
    assert proof.requested([QKV, PA], "int8", [QKV], "fp16") == {QKV: "int8", PA: "fp16"}


def test_every_kernel_of_a_place_counts() -> None:
    plan = [
        layer("gemm", "Int8", "stage1.0.attn.q.MatMul"),
        layer("gemm", "Half", "stage1.0.attn.k.MatMul", "stage1.0.attn.v.MatMul"),
        layer("kgen", "Float", "stage1.0.attn.q.MatMul"),
    ]
    (row,) = proof.prove(plan, {QKV: "int8"})
    assert row.obtained == ("int8", "fp16"), "not the pointwise kernel"
    assert proof.failures([row]) == [
        "stage1.0:qkv was asked for in int8, NVIDIA planned int8, fp16"
    ]


def test_what_is_fused_or_missing() -> None:
    rows = proof.prove([layer("kgen", "Half", "stem.pos.pa_conv.Conv")], {PA: "fp16", QKV: "fp16"})
    assert [row.obtained for row in rows] == [("fp16",), ()]
    assert proof.failures(rows) == [
        "stage1.0:qkv was asked for in fp16 and is not in NVIDIA's plan"
    ]


def test_enforce_names_the_first() -> None:
    rows = [
        Proven(block=f"stage1.{n}", role="mlp", requested="fp16", obtained=("fp32",))
        for n in range(5)
    ]
    with pytest.raises(
        VerificationError, match=r"stage1\.0:mlp .*and 2 more; no engine was written"
    ):
        proof.enforce(rows, "x.engine")


@pytest.fixture(scope="module")
def table(exported_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> CalibrationTable:
    folder = tmp_path_factory.mktemp("images")
    photo_like(folder, 8)
    recipe = msgspec.structs.replace(INT8, quantize=(*INT8.quantize, "pa"))
    return calibrate(exported_nano, open_set(folder, load_card("nano").preprocessing), recipe)


def with_recipe(table: CalibrationTable, recipe: Recipe) -> CalibrationTable:
    return msgspec.structs.replace(table, recipe=recipe)


def wrong(graph: ir.Model, float_model: Path, precision: Precision, recipe: Recipe) -> list[str]:
    """Failures of NVIDIA's plan for `graph` against what the user asked for."""
    pytest.importorskip("tensorrt_rtx_bindings")
    built = build(
        "tensorrt-rtx", ir.to_proto(graph).SerializeToString(),
        Options(profiles=(PROFILE,), sms=("89",)), lambda *_: None,
    )  # fmt: skip
    nodes: Any = (node for node in ir.load(float_model).graph
                  if node.op_type in {"MatMul", "Gemm", "Conv"})  # fmt: skip
    places = list(dict.fromkeys(here for node in nodes if (here := place(node.name or ""))))
    asked = proof.requested(places, precision, [here for here in places if recipe.wants(here)])
    return proof.failures(proof.prove(built.layers, asked))


def test_int8_as_it_should_be(exported_nano: Path, table: CalibrationTable) -> None:
    graph, _ = quantize(exported_nano, with_recipe(table, INT8))
    assert wrong(graph, exported_nano, "int8", INT8) == []


def test_float32_passed_as_fp16(exported_nano: Path) -> None:
    found = wrong(ir.load(exported_nano), exported_nano, "fp16", INT8)
    assert len(found) > 30
    assert "stem.conv1:stem was asked for in fp16, NVIDIA planned fp32" in found


def test_fp16_as_it_should_be(exported_nano: Path) -> None:
    graph = ir.load(exported_nano)
    to_sixteen_bit(graph, "fp16")
    assert wrong(graph, exported_nano, "fp16", INT8) == []


@pytest.mark.parametrize("role", ["pa", "sr", "up"])
def test_no_depthwise_convolution_in_8_bits(role: Role) -> None:
    """Not even one that was asked for: padded channels cost more than 8 bits save."""
    name = {"pa": "stem.pos.pa_conv", "sr": "stage1.0.attn.sr", "up": "stage1.0.attn.up"}[role]
    here = place(f"{name}.Conv")
    assert here is not None
    (row,) = proof.prove([layer("convolution", "Int8", f"{name}.Conv")], {here: "int8"})
    assert [row.role, *row.obtained] == [role, "int8"]
    assert "is a depthwise convolution in int8" in proof.failures([row])[0]


def test_gemms_left_in_float(exported_nano: Path, table: CalibrationTable) -> None:
    forgetful = msgspec.structs.replace(INT8, float_places=("stage3.0:mlp", "patch_embed_2:patch"))
    graph, _ = quantize(exported_nano, with_recipe(table, forgetful))
    found = wrong(graph, exported_nano, "int8", INT8)
    assert found == [
        "patch_embed_2:patch was asked for in int8, NVIDIA planned fp32",
        "stage3.0:mlp was asked for in int8, NVIDIA planned fp32",
    ]


def test_a_quantized_depthwise_convolution(exported_nano: Path, table: CalibrationTable) -> None:
    """Even where the recipe asks for it."""
    graph, _ = quantize(exported_nano, table)
    found = wrong(graph, exported_nano, "int8", table.recipe)
    assert len(found) == 4
    assert found[0].startswith("stem:pa is a depthwise convolution in int8")
