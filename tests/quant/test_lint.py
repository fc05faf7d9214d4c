"""Foreign graphs are told by structure: a plain torch export quantized by ONNX Runtime is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.cards import load_card
from rest_deploy.graph.unsign import unsign_activations
from rest_deploy.model.checkpoint import load_model
from rest_deploy.quant.calibrate import calibrate, quantize
from rest_deploy.quant.dataset import CalibrationSet, open_set
from rest_deploy.quant.lint import Finding, Lint, lint
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.verify.parity import Case, synthetic_images
from tests.quant.test_dataset import photo_like

INT8 = load_recipe("int8")
ATTENTIONS = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    folder = tmp_path_factory.mktemp("images")
    photo_like(folder, 4)
    return open_set(folder, load_card("nano").preprocessing)


def ours(model: Path, images: CalibrationSet, **changes: Any) -> ir.Model:
    recipe = msgspec.structs.replace(INT8, **changes)
    return quantize(model, calibrate(model, images, recipe))[0]


def found(result: Lint) -> dict[str, Finding]:
    return {finding.rule: finding for finding in result.findings}


def test_our_own_graph_is_clean(exported_nano: Path, images: CalibrationSet) -> None:
    result = lint(ours(exported_nano, images))
    assert (result.attentions, result.missed) == (ATTENTIONS, 0)
    assert result.quantized == 35
    assert result.findings == ()


def test_a_float_graph_has_missed_everything(exported_nano: Path) -> None:
    result = lint(ir.load(exported_nano))
    assert (result.attentions, result.missed, result.quantized) == (ATTENTIONS, ATTENTIONS, 0)
    assert found(result)["attention-missed"].where[0] == "stage1.0.attn.k.weight.T (k, v)"
    assert found(result)["layer-missed"].count == 10 + 1 + 3 + 3  # mlp, head, stem, patch


def test_a_missed_layer_is_named(exported_nano: Path, images: CalibrationSet) -> None:
    result = lint(ours(exported_nano, images, float_places=("stage3.1:proj", "stem.conv2:stem")))
    assert result.missed == 1
    assert found(result)["attention-missed"].where == ("stage3.1.attn.proj.weight.T (proj)",)
    assert found(result)["layer-missed"].where == ("stem.conv2.weight",)


def test_what_should_have_stayed_float(exported_nano: Path, images: CalibrationSet) -> None:
    """Of the five attentions the first has no InstanceNorm and may have its context quantized."""
    result = lint(ours(exported_nano, images, quantize=(*INT8.quantize, "context", "pa", "sr")))
    assert (found(result)["map-quantized"].count, found(result)["map-quantized"].total) == (4, 4)
    assert found(result)["depthwise-quantized"].count == 4 + 4
    assert result.missed == 0


def test_scores_may_be_quantized(exported_nano: Path, images: CalibrationSet) -> None:
    assert lint(ours(exported_nano, images, quantize=(*INT8.quantize, "scores"))).findings == ()


def test_weights_that_saturate_are_counted(exported_nano: Path, images: CalibrationSet) -> None:
    rule = found(lint(ours(exported_nano, images, exact_pairs=False)))["sums-saturate"]
    assert (rule.level, rule.total) == ("warning", 35)
    assert 20 < rule.count <= 35


def test_zero_points(exported_nano: Path, images: CalibrationSet) -> None:
    """ONNX Runtime's own form is not one for TensorRT."""
    model = ours(exported_nano, images)
    unsign_activations(model)
    assert found(lint(model))["asymmetric"].level == "error"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch.onnx.export alone gives: kv in one, InstanceNorm as it comes, other names."""
    import torch

    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    program = torch.onnx.export(
        load_model(load_card("nano"), None).module.eval(), (torch.zeros(2, 3, 64, 64),),
        dynamo=True, input_names=["image"], output_names=["logits"], opset_version=20,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(path)
    return path


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_foreign_graph(plain: Path, tmp_path: Path, per_channel: bool) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            batches = [synthetic_images(Case(batch=2, height=64, width=64))]
            self._batches = iter(np.asarray(batches))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"image": batch}

    path = tmp_path / "foreign.onnx"
    quantization.quantize_static(plain, path, Reader(), per_channel=per_channel)
    result = lint(ir.load(path))
    rules = found(result)
    assert (result.attentions, result.missed) == (ATTENTIONS, 0)
    assert rules["map-quantized"].count == 4
    assert rules["depthwise-quantized"].count == 8
    assert {"asymmetric", "bias-quantized"} <= set(rules)
    assert ("per-tensor-weight" in rules) == (not per_channel)


def test_another_kind_of_model() -> None:
    value = ir.val("x", shape=ir.Shape((1, 3)), dtype=ir.DataType.FLOAT)
    node = ir.node("Relu", [value])
    graph = ir.Graph([value], list(node.outputs), nodes=[node], opset_imports={"": 20})
    assert lint(ir.Model(graph, ir_version=10)) == Lint(0, 0, 0, 0, ())
