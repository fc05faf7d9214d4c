from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rest_deploy.errors import InputError
from rest_deploy.graph.precision import (
    ISLAND,
    IoType,
    Sixteen,
    beyond_fp16,
    emulate,
    to_sixteen_bit,
)
from rest_deploy.quant.level import level
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images

IMAGES = synthetic_images(Case(batch=4, height=96, width=128))


def typed(source: Path, precision: Sixteen, io_type: IoType = "float32") -> ir.Model:
    model = ir.load(source)
    if precision == "bf16":
        model.opset_imports[""] = 22
    level(model)
    to_sixteen_bit(model, precision, io_type=io_type)
    return model


def saved(model: ir.Model, folder: Path) -> Path:
    path = folder / "typed.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def error(source: Path, model: ir.Model, folder: Path) -> float:
    expected = Session.open(source).run(IMAGES).astype(np.float64)
    return relative_error(expected, Session.open(saved(model, folder)).run(IMAGES))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_map_chain_is_an_island_and_nothing_else_is(
    exported_nano: Path, precision: Sixteen
) -> None:
    model = typed(exported_nano, precision)
    wide = [
        node
        for node in model.graph
        if node.op_type != "Cast" and any(v.dtype == ir.DataType.FLOAT for v in node.outputs)
    ]
    assert wide
    assert all(ISLAND.fullmatch(node.name or "") for node in wide)
    assert {node.op_type for node in wide}.isdisjoint({"MatMul", "Gemm", "Conv"})
    narrow = [node for node in model.graph if node.op_type in {"MatMul", "Gemm", "Conv"}]
    assert {node.outputs[0].dtype.name for node in narrow if node.outputs[0].dtype} == {
        "FLOAT16" if precision == "fp16" else "BFLOAT16"
    }


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_accuracy_with_every_result_rounded(
    trained_nano: Path, tmp_path: Path, precision: Sixteen, bound: float
) -> None:
    model = typed(trained_nano, precision)
    assert emulate(model) > 150
    assert error(trained_nano, model, tmp_path) < bound


def test_the_island_is_needed(
    trained_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    from rest_deploy.graph import precision

    errors = []
    for island in (ISLAND, re.compile("nothing")):
        monkeypatch.setattr(precision, "ISLAND", island)
        model = typed(trained_nano, "bf16")
        emulate(model)
        errors.append(error(trained_nano, model, tmp_path))
    assert errors[1] > 3 * errors[0]


def test_emulation_rounds_where_the_cpu_provider_would_not(
    trained_nano: Path, tmp_path: Path
) -> None:
    """One operator: the twin's output is on the FP16 grid."""
    model = typed(trained_nano, "fp16")
    emulate(model)
    path = saved(model, tmp_path)
    logits = Session.open(path).run(IMAGES)
    np.testing.assert_array_equal(logits, logits.astype(np.float16).astype(np.float32))


def test_io_types(exported_nano: Path, tmp_path: Path) -> None:
    session = Session.open(saved(typed(exported_nano, "fp16", "float16"), tmp_path))
    assert session.runner.inputs[0].dtype == "float16"
    assert session.runner.outputs[0].dtype == "float16"
    assert session.run(IMAGES).dtype == np.float32
    session = Session.open(saved(typed(exported_nano, "fp16"), tmp_path))
    assert session.runner.inputs[0].dtype == "float32"
    assert session.runner.outputs[0].dtype == "float32"


def test_a_weight_beyond_fp16_is_named(exported_nano: Path) -> None:
    model = ir.load(exported_nano)
    weight = model.graph.initializers["stage2.0.mlp.fc1.weight.T"]
    assert weight.const_value is not None
    stressed = weight.const_value.numpy().copy()
    stressed[0, 0] = 7e4
    weight.const_value = ir.tensor(stressed, name=weight.name)
    with pytest.raises(
        InputError, match=r"stage2\.0\.mlp\.fc1\.weight\.T reaches 7e\+04"
    ) as caught:
        to_sixteen_bit(model, "fp16")
    assert "--bf16" in str(caught.value)


def test_activations_beyond_fp16_are_listed_worst_first() -> None:
    found = beyond_fp16({"a": 7e4, "b": 100.0, "c": 1e6, "d": float("nan")})
    assert len(found) == 3
    assert "c reaches 1e+06" in found
    assert "a reaches 7e+04" in found


def test_bf16_wants_a_newer_opset(exported_nano: Path) -> None:
    with pytest.raises(InputError, match="BF16 needs opset 22"):
        to_sixteen_bit(ir.load(exported_nano), "bf16")
