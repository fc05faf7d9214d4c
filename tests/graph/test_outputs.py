"""Graphs of several outputs and of pixels: axes, types, what precision and quantization leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from rest_deploy.cards import load_card
from rest_deploy.contracts import Profile
from rest_deploy.engine.providers import ProviderOptions, settings
from rest_deploy.graph.precision import to_sixteen_bit
from rest_deploy.graph.tensors import at_shape
from rest_deploy.preprocess import normalize
from rest_deploy.quant.equalize import Site, sites


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_axes(pixels_nano: Path) -> None:
    graph = onnx.load(pixels_nano).graph
    assert dims(graph.input[0]) == ["batch", "height", "width", 3]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    found = {value.name: dims(value) for value in graph.output}
    assert found["embedding"] == ["batch", 128]
    assert found["c4"] == ["batch", 96, "c4_height", "c4_width"]
    assert graph.node[0].op_type == "Cast", "NVIDIA's parser takes uint8 into nothing else"


def test_pixels_are_normalized_bit_for_bit(pixels_nano: Path) -> None:
    """ONNX Runtime's own division, on every value that a pixel can have."""
    import onnxruntime

    model = onnx.load(pixels_nano)
    model.graph.output.append(onnx.helper.make_tensor_value_info("pixels.Div_1.out", 1, None))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), np.uint8)
    pixels.reshape(-1)[:768] = np.repeat(np.arange(256), 3)
    (found,) = session.run(["pixels.Div_1.out"], {"image": pixels})
    preprocessing = load_card("nano").preprocessing
    expected = np.stack([normalize(image, preprocessing) for image in pixels])
    np.testing.assert_array_equal(found, expected)
    reversed_channels = np.stack([normalize(image[..., ::-1], preprocessing) for image in pixels])
    assert not np.array_equal(found, reversed_channels)


def test_shapes_follow_from_the_images(pixels_nano: Path) -> None:
    found = at_shape(onnx.load(pixels_nano), (2, 3, 65, 96))
    assert found["image"].dims == (2, 65, 96, 3)
    assert found["c2"].dims == (2, 32, 17, 24)
    assert found["c5"].dims == (2, 128, 3, 3)


def test_the_ends_stay_float32(pixels_nano: Path) -> None:
    model = ir.load(pixels_nano)
    to_sixteen_bit(model, "fp16", io_type="float16")
    assert model.graph.inputs[0].dtype == ir.DataType.UINT8
    assert {output.dtype for output in model.graph.outputs} == {ir.DataType.FLOAT16}
    ends = ("pixels.", "probabilities.", "unit_length.")
    shores = {"Cast"}
    kinds = [
        node.outputs[0].dtype
        for node in model.graph
        if (node.name or "").startswith(ends) and node.op_type not in shores
    ]
    assert len(kinds) == 9
    assert set(kinds) == {ir.DataType.FLOAT}
    others = {n.outputs[0].dtype for n in model.graph if n.op_type == "Conv"}
    assert others == {ir.DataType.FLOAT16}


def test_an_embedding_that_goes_out_is_not_rescaled(
    trained_nano: Path, everything_nano: Path
) -> None:
    """Equalization would divide its channels and multiply the head's weights."""

    def of_the_head(path: Path) -> list[Site]:
        found = sites(ir.load(path))
        return [site for site in found if any("head" in name for name, _ in site.readers)]

    assert len(of_the_head(trained_nano)) == 1
    assert of_the_head(everything_nano) == []


def test_a_provider_is_told_shapes_in_the_files_layout() -> None:
    profile = Profile(minimum=(1, 3, 32, 48), optimum=(2, 3, 64, 64), maximum=(4, 3, 64, 96))
    told = settings("tensorrt", ProviderOptions(profiles=(profile,), input_kind="uint8"))
    assert told["trt_profile_min_shapes"] == "image:1x32x48x3"
    assert told["trt_profile_max_shapes"] == "image:4x64x96x3"
    told = settings("tensorrt", ProviderOptions(profiles=(profile,)))
    assert told["trt_profile_min_shapes"] == "image:1x3x32x48"
