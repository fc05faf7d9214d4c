from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.cards import load_card
from rest_deploy.engine.onnxruntime import kernels
from rest_deploy.graph.unsign import unsign_activations
from rest_deploy.quant.calibrate import calibrate, quantize
from rest_deploy.quant.dataset import open_set
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images
from tests.quant.test_dataset import photo_like


@pytest.fixture(scope="module")
def signed(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    photo_like(folder / "set", 8)
    images = open_set(folder / "set", load_card("nano").preprocessing)
    model, _ = quantize(trained_nano, calibrate(trained_nano, images, load_recipe("int8")))
    ir.save(model, folder / "signed.onnx")
    return folder / "signed.onnx"


def test_the_same_values_and_more_integer_kernels(signed: Path, tmp_path: Path) -> None:
    model = ir.load(signed)
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph)
    assert unsign_activations(model) == pairs
    unsigned = tmp_path / "unsigned.onnx"
    ir.save(model, unsigned)
    images = synthetic_images(Case(batch=2, height=64, width=64))
    expected = Session.open(signed).run(images).astype(np.float64)
    # Float kernels against integer ones: a last bit may round the next activation elsewhere.
    assert relative_error(expected, Session.open(unsigned).run(images)) < 5e-3

    def integer(path: Path) -> set[str]:
        return {name for name, kind in kernels(path) if kind == "int8"}

    assert {f"stage4.0.attn.{name}.MatMul" for name in "qkv"} <= integer(unsigned)
    assert len(integer(unsigned)) == 28, "every MatMul with a weight but the one head's offset"


def test_a_float_graph_is_left_alone(exported_nano: Path) -> None:
    assert unsign_activations(ir.load(exported_nano)) == 0
