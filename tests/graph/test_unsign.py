from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from rest_deploy.engine.onnxruntime import kernels
from rest_deploy.graph.unsign import unsign_activations
from rest_deploy.quant.calibrate import quantize
from rest_deploy.quant.table import CalibrationTable
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images

IMAGES = synthetic_images(Case(batch=2, height=64, width=64))


@pytest.fixture(scope="module")
def signed(
    trained_nano: Path, nano_table: CalibrationTable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    model, _ = quantize(trained_nano, nano_table)
    path = tmp_path_factory.mktemp("signed") / "signed.onnx"
    ir.save(model, path)
    return path


@pytest.fixture(scope="module")
def unsigned(signed: Path) -> Path:
    model = ir.load(signed)
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph)
    assert unsign_activations(model) == pairs
    path = signed.with_stem("unsigned")
    ir.save(model, path)
    return path


def as_written(path: Path) -> npt.NDArray[np.generic]:
    """Logits of the graph as it stands in the file: Q/DQ in float, the same on every CPU."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return np.asarray(session.run(None, {image.name: IMAGES})[0])


def test_the_same_values_on_every_cpu(signed: Path, unsigned: Path, tmp_path: Path) -> None:
    expected = as_written(signed)
    assert np.array_equal(expected, as_written(unsigned))
    model = ir.load(unsigned)
    moved = next(
        node.inputs[2] for node in model.graph
        if node.op_type == "DequantizeLinear" and len(node.inputs) > 2
        and node.inputs[2] is not None and node.inputs[2].const_value is not None
        and node.inputs[2].const_value.dtype == ir.DataType.UINT8
    )  # fmt: skip
    assert moved is not None
    moved.const_value = ir.tensor(np.array(127, np.uint8), name=moved.name)
    ir.save(model, tmp_path / "moved.onnx")
    assert not np.array_equal(expected, as_written(tmp_path / "moved.onnx"))


def test_more_integer_kernels(signed: Path, unsigned: Path) -> None:
    def integer(path: Path) -> set[str]:
        return {name for name, kind in kernels(path) if kind == "int8"}

    assert {f"stage4.0.attn.{name}.MatMul" for name in "qkv"} <= integer(unsigned)
    assert len(integer(unsigned)) == 28, "every MatMul with a weight but the one head's offset"
    assert integer(signed) < integer(unsigned)


def test_the_integer_kernels_compute_them_too(
    signed: Path, unsigned: Path, nano_table: CalibrationTable
) -> None:
    """On every CPU, since the recipe's weights are such that none saturates."""
    assert nano_table.recipe.exact_pairs
    expected = Session.open(signed).run(IMAGES).astype(np.float64)
    # Float kernels against integer ones: a last bit may round the next activation elsewhere.
    assert relative_error(expected, Session.open(unsigned).run(IMAGES)) < 5e-3


def test_a_float_graph_is_left_alone(exported_nano: Path) -> None:
    assert unsign_activations(ir.load(exported_nano)) == 0
