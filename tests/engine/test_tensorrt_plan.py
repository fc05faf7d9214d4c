"""NVIDIA's real builder plans our graphs; no GPU is needed for that."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from rest_deploy import verbs
from rest_deploy.contracts import Precision
from rest_deploy.engine.proof import failures, prove, requested
from rest_deploy.engine.tensorrt_plan import PlannedLayer, read_plan, weight_layers
from rest_deploy.graph.precision import ISLAND, to_sixteen_bit
from rest_deploy.graph.roles import Place, place
from rest_deploy.quant.calibrate import calibrate, quantize
from rest_deploy.quant.dataset import open_set
from rest_deploy.quant.level import level
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.runtime.session import Session

RECORD = (
    "Name: stage1.0.attn.proj.MatMul_myl1_26, LayerType: gemm, Inputs: [ { Name: a, Dimensions: "
    "[-1,64], Strides: [64,1], Datatype: Int8, Format: (Linear) Row major linear format }], "
    "Constants: [ { Name: b, Dimensions: [64,64], Datatype: Int8 }, { Name: c, Dimensions: [1], "
    "Datatype: Float }], Outputs: [ { Name: d, Dimensions: [-1,64], Datatype: Float }], "
    "TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: stage1.0.attn.proj.MatMul]"
    "[ONNX Layer: stage1.0.attn.Squeeze.out.DequantizeLinear]"
)


def test_a_record() -> None:
    (layer,) = read_plan(["[V] some line", f"{RECORD}\n{RECORD}"])
    assert (layer.kind, layer.inputs, layer.outputs) == ("gemm", ("Int8",), ("Float",))
    assert layer.constants == ("Int8", "Float")
    assert layer.places == (Place("stage1.0", "proj"),)
    assert weight_layers([layer]) == {"proj": Counter(Int8=1)}


def test_pointwise_kernels_multiply_no_matrices() -> None:
    line = RECORD.replace("LayerType: gemm", "LayerType: kgen")
    assert weight_layers(read_plan([line])) == {}


def planned(path: Path) -> list[PlannedLayer]:
    """Build for SM89 with dynamic shapes; the plan from the verbose log."""
    trt: Any = pytest.importorskip("tensorrt_rtx_bindings")
    lines: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]  # an untyped base
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ARG002  # their signature
            lines.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(path.read_bytes()), [
        parser.get_error(index).desc() for index in range(parser.num_errors)
    ]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 3, 32, 32), (8, 3, 224, 224), (32, 3, 448, 448))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    return read_plan(lines)


def int8_plan(model: Path, folder: Path) -> dict[str, Counter[str]]:
    preprocessing = Session.open(model).metadata.card.preprocessing
    table = calibrate(model, open_set(None, preprocessing, limit=16), load_recipe("int8"))
    graph, _ = quantize(model, table)
    ir.save(graph, folder / "int8.onnx")
    return weight_layers(planned(folder / "int8.onnx"))


def check_int8(plan: dict[str, Counter[str]], gemms: int) -> None:
    weights = Counter[str]()
    for role in ("qkv", "proj", "mlp", "head"):
        weights += plan[role]
    assert weights == {"Int8": gemms}, "every weight GEMM, after merging those of one input"
    assert plan["stem"] == plan["patch"] == {"Int8": 3}
    assert set(plan["sr"]) == {"Float"}
    assert set(plan.get("pa", {})) <= {"Float"}


def check_fp16(model: Path, folder: Path) -> None:
    graph = ir.load(model)
    level(graph)
    to_sixteen_bit(graph, "fp16")
    ir.save(graph, folder / "fp16.onnx")
    plan = planned(folder / "fp16.onnx")
    matrices = weight_layers(plan)
    assert {kind for kinds in matrices.values() for kind in kinds} == {"Half"}
    assert {"qkv", "proj", "mlp", "stem", "patch", "sr"} <= set(matrices)
    head = [layer for layer in plan if "head.Gemm" in layer.onnx_layers]
    assert head
    assert all(layer.computes_in == "Half" for layer in head)
    wide = [layer for layer in plan if "Float" in layer.inputs and layer.onnx_layers]
    assert any(ISLAND.fullmatch(name) for layer in wide for name in layer.onnx_layers)


def test_int8_of_nano(trained_nano: Path, tmp_path: Path) -> None:
    """15 q, k, v; of the four stages' five blocks, those with sr merge k and v, stage 4 all."""
    check_int8(int8_plan(trained_nano, tmp_path), gemms=23)


def test_fp16_of_nano(trained_nano: Path, tmp_path: Path) -> None:
    check_fp16(trained_nano, tmp_path)


@pytest.mark.slow
def test_lite(tmp_path: Path) -> None:
    model = Path(verbs.export("lite", output_dir=tmp_path).path)
    check_int8(int8_plan(model, tmp_path), gemms=35)
    check_fp16(model, tmp_path)


V2 = ("v2-tiny", "v2-small", "v2-base", "v2-large")


@pytest.mark.slow
@pytest.mark.parametrize("variant", V2)
def test_v2(variant: str, tmp_path: Path) -> None:
    """Convolution and DepthToSpace of the branch too; tests/test_cli_v2.py has nano."""
    report = verbs.export(variant, output_dir=tmp_path)
    model = Path(report.path)
    check_proof(model, tmp_path, "fp16")
    check_proof(model, tmp_path, "int8")


def check_proof(model: Path, folder: Path, precision: Precision) -> None:
    """Every place of the model computes in what was asked for, and the branch is in the plan."""
    graph = ir.load(model)
    multiply = {"MatMul", "Gemm", "Conv"}
    found = [place(node.name or "") for node in graph.graph if node.op_type in multiply]
    places = [here for here in dict.fromkeys(found) if here is not None]
    chosen: list[Place] = []
    if precision == "int8":
        preprocessing = Session.open(model).metadata.card.preprocessing
        recipe = load_recipe("int8")
        chosen = [here for here in places if recipe.wants(here)]
        graph, _ = quantize(
            model, calibrate(model, open_set(None, preprocessing, limit=16), recipe)
        )
    to_sixteen_bit(graph, "fp16")
    ir.save(graph, folder / f"{precision}.onnx")
    plan = planned(folder / f"{precision}.onnx")
    rows = prove(plan, requested(places, precision, chosen, "fp16"))
    assert failures(rows) == []
    names = {name for layer in plan for name in layer.onnx_layers}
    assert {"stage1.0.attn.DepthToSpace", "stage1.0.attn.up.Conv"} <= names
