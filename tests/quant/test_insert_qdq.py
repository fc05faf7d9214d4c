from __future__ import annotations

from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rest_deploy.errors import InputError
from rest_deploy.quant.extents import Extent, measure
from rest_deploy.quant.insert_qdq import insert_qdq, observed_tensors, quantized_weight
from rest_deploy.quant.recipe import Corrections, Recipe, load_recipe
from rest_deploy.quant.scales import LARGEST
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images

IMAGES = synthetic_images(Case(batch=4, height=64, width=96))
INT8 = load_recipe("int8")


@pytest.fixture(scope="module")
def observed(exported_nano: Path) -> dict[str, Extent]:
    everything = msgspec.structs.replace(INT8, quantize=(*INT8.quantize, "scores", "pa", "sr"))
    model = ir.load(exported_nano)
    return measure(model, observed_tensors(model, everything), lambda _done: [IMAGES])


def thresholds(observed: dict[str, Extent], factor: float = 1.0) -> dict[str, float]:
    return {name: seen.largest * factor for name, seen in observed.items()}


def quantized(
    source: Path, observed: dict[str, Extent], folder: Path, recipe: Recipe = INT8
) -> Path:
    model = ir.load(source)
    insert_qdq(model, recipe, thresholds(observed))
    path = folder / "quantized.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def error(source: Path, other: Path) -> float:
    expected = Session.open(source).run(IMAGES).astype(np.float64)
    return relative_error(expected, Session.open(other).run(IMAGES))


def test_what_is_quantized_and_what_is_not(
    exported_nano: Path, observed: dict[str, Extent]
) -> None:
    model = ir.load(exported_nano)
    report = insert_qdq(model, INT8, thresholds(observed))
    assert report.quantized == {"stem": 3, "patch": 3, "qkv": 14, "proj": 4, "mlp": 10, "head": 1}
    assert {role: sum(c.values()) for role, c in report.skipped.items()} == {
        "pa": 4, "offset": 1, "scores": 5, "context": 5, "transform": 4, "sr": 4,
    }  # fmt: skip
    assert {reason for c in report.skipped.values() for reason in c} == {"role kept in float"}


def test_the_graph(exported_nano: Path, observed: dict[str, Extent], tmp_path: Path) -> None:
    graph = onnx.load(quantized(exported_nano, observed, tmp_path)).graph
    stored = {i.name: i for i in graph.initializer}
    by_output = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            zero = onnx.numpy_helper.to_array(stored[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
            assert onnx.numpy_helper.to_array(stored[node.input[1]]).shape == ()
    product = next(n for n in graph.node if n.name == "stage2.0.mlp.fc1.MatMul")
    activation, weight = (by_output[name] for name in product.input[:2])
    assert activation.op_type == weight.op_type == "DequantizeLinear"
    assert onnx.numpy_helper.to_array(stored[weight.input[0]]).dtype == np.int8
    assert onnx.numpy_helper.to_array(stored[weight.input[1]]).shape == (256,)
    depthwise = next(n for n in graph.node if n.name == "stage2.0.attn.sr.Conv")
    assert depthwise.input[1] in stored  # its weight is the float initializer itself


def test_one_pair_serves_all_readers(
    exported_nano: Path, observed: dict[str, Extent], tmp_path: Path
) -> None:
    graph = onnx.load(quantized(exported_nano, observed, tmp_path)).graph
    readers = [n for n in graph.node if n.name in {f"stage4.0.attn.{x}.MatMul" for x in "qkv"}]
    assert len({node.input[0] for node in readers}) == 1


def test_logits_stay_close(
    exported_nano: Path, observed: dict[str, Extent], tmp_path: Path
) -> None:
    assert 1e-5 < error(exported_nano, quantized(exported_nano, observed, tmp_path)) < 0.2


def test_a_wrong_scale_is_far_away(
    exported_nano: Path, observed: dict[str, Extent], tmp_path: Path
) -> None:
    good = error(exported_nano, quantized(exported_nano, observed, tmp_path))
    name = "stage4.0.norm2.LayerNormalization.out"
    wrong = {**observed, name: Extent()}
    reach = np.array([300], np.float32)
    wrong[name].add(reach, -reach, 0 * reach, 1)
    assert error(exported_nano, quantized(exported_nano, wrong, tmp_path)) > 1.5 * good


def test_missing_range_names_the_tensor(exported_nano: Path, observed: dict[str, Extent]) -> None:
    known = thresholds(observed)
    del known["image"]
    with pytest.raises(InputError, match="no range for image"):
        insert_qdq(ir.load(exported_nano), INT8, known)


def test_exceptions_stay_float(exported_nano: Path, observed: dict[str, Extent]) -> None:
    recipe = msgspec.structs.replace(INT8, float_places=("stage3:proj",))
    report = insert_qdq(ir.load(exported_nano), recipe, thresholds(observed))
    assert report.quantized["proj"] == 2
    assert report.skipped["proj"] == {"float_places of the recipe": 2}


def test_both_inputs_of_an_attention_product(
    exported_nano: Path, observed: dict[str, Extent], tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(INT8, quantize=("scores",))
    graph = onnx.load(quantized(exported_nano, observed, tmp_path, recipe)).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 2 * 5


def test_weights_round_within_half_a_step() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    stored, scales = quantized_weight(weight, 1, INT8)
    assert stored.dtype == np.int8
    values = stored.astype(np.float32)
    assert np.abs(values).max() == 127
    assert (np.abs(values * scales - weight) <= scales / 2 + 1e-7).all()


def test_fp8_weights() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    stored, scales = quantized_weight(weight, 0, load_recipe("fp8"))
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    values = stored.astype(np.float32)
    assert np.abs(values).max() == LARGEST["fp8"]
    np.testing.assert_allclose(
        values * scales[:, None], weight, rtol=1 / 16, atol=scales.max() / 64
    )


def value(of: ir.Model, name: str) -> np.ndarray:
    tensor = of.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


def test_bias_correction_takes_the_mean_error_out(
    exported_nano: Path, observed: dict[str, Extent]
) -> None:
    """The corrected bias makes the mean output of a quantized layer that of the float one."""
    recipe = msgspec.structs.replace(INT8, corrections=Corrections(bias=True))
    model, plain = ir.load(exported_nano), ir.load(exported_nano)
    means = {name: seen.channel_mean for name, seen in observed.items()}
    insert_qdq(model, recipe, thresholds(observed), means)

    name = "stage2.0.mlp.fc2"
    mean = means["stage2.0.mlp.act.Gelu.out"]
    dequantized = value(model, f"{name}.weight.T.int8") * value(model, f"{name}.weight.T.scale")
    expected = mean @ value(plain, f"{name}.weight.T") + value(plain, f"{name}.bias")
    corrected = mean @ dequantized + value(model, f"{name}.bias")
    uncorrected = mean @ dequantized + value(plain, f"{name}.bias")
    np.testing.assert_allclose(corrected, expected, atol=1e-6)
    assert np.abs(uncorrected - expected).max() > 1e-5


def test_a_depthwise_convolution_of_several_outputs_a_channel(trained_v2_nano: Path) -> None:
    """A scale and a corrected bias for each of the 16 outputs of each of the 64 channels."""
    recipe = msgspec.structs.replace(INT8, quantize=("up",), corrections=Corrections(bias=True))
    plain, model = ir.load(trained_v2_nano), ir.load(trained_v2_nano)
    seen = measure(plain, observed_tensors(plain, recipe), lambda _done: [IMAGES])
    means = {name: extent.channel_mean for name, extent in seen.items()}
    report = insert_qdq(model, recipe, thresholds(seen), means)
    assert report.quantized == {"up": 5}
    name = "stage2.0.attn.up"
    weight, scales = value(plain, f"{name}.weight"), value(model, f"{name}.weight.scale")
    assert (weight.shape, scales.shape) == ((1024, 1, 3, 3), (1024,))
    stored = value(model, f"{name}.weight.int8") * scales[:, None, None, None]
    convolution = next(node for node in plain.graph if node.name == f"{name}.Conv")
    source = convolution.inputs[0]
    assert source is not None
    mean = means[source.name or ""].repeat(16)
    expected = weight.sum(axis=(1, 2, 3)) * mean + value(plain, f"{name}.bias")
    corrected = stored.sum(axis=(1, 2, 3)) * mean + value(model, f"{name}.bias")
    uncorrected = stored.sum(axis=(1, 2, 3)) * mean + value(plain, f"{name}.bias")
    np.testing.assert_allclose(corrected, expected, atol=1e-5)
    assert np.abs(uncorrected - expected).max() > 1e-4
