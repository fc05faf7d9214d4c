"""Counted work against formulas, against the count on PyTorch's module, and across precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rest_deploy.cards import load_card
from rest_deploy.contracts import Dims
from rest_deploy.errors import ArtifactError
from rest_deploy.graph.work import NOWHERE, Work, count, joined, summed
from rest_deploy.model import cost
from rest_deploy.model.deploy import to_deploy
from rest_deploy.model.family import build
from rest_deploy.model.rest import ResT

IMAGE: Dims = (2, 3, 32, 48)


def graph(
    *nodes: onnx.NodeProto, weights: dict[str, tuple[int, ...]], outputs: tuple[str, ...] = ("y",)
) -> onnx.ModelProto:
    """Weights of float32; a name that ends in "8" is of int8, "shape" holds the numbers itself."""
    initializers = []
    for name, dims in weights.items():
        if name == "shape":
            values = np.array(dims, np.int64)
        else:
            values = np.zeros(dims, np.int8 if name.endswith("8") else np.float32)
        initializers.append(numpy_helper.from_array(values, name))
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])


def node(operator: str, name: str, inputs: str, output: str, **more: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=name, **more)


def work_of(model: onnx.ModelProto, name: str, shape: Dims = IMAGE) -> Work:
    (found,) = [work for work in count(model, shape) if work.node == name]
    return found


def test_a_product_with_weights() -> None:
    """2 M N K, with the batch in M; every operand once."""
    model = graph(node("MatMul", "m", "image w", "y"), weights={"w": (48, 10)})
    work = work_of(model, "m")
    assert work.flops == 2 * (2 * 3 * 32) * 48 * 10
    assert work.bytes == 4 * (2 * 3 * 32 * 48 + 48 * 10 + 2 * 3 * 32 * 10)
    assert (work.kind, work.precision, work.part) == ("gemm", "fp32", NOWHERE)


def test_a_gemm_of_either_order() -> None:
    flat = node("Reshape", "flat", "image shape", "a")
    for transposed, weights in ((0, (6, 5)), (1, (1536, 5))):
        model = graph(
            flat,
            node("Gemm", "g", "a w b", "y", transA=transposed),
            weights={"shape": (1536, 6), "w": weights, "b": (5,)},
        )
        assert work_of(model, "g").flops == 2 * 1536 * 6 * 5
        assert work_of(model, "flat").bytes == 0


@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions_dense_and_depthwise(groups: int) -> None:
    """Stride 2, padding 1: 16 x 24 places, 3 x 3 taps, a group's channels each."""
    model = graph(
        node("Conv", "c", "image w", "y", group=groups, strides=[2, 2], pads=[1, 1, 1, 1]),
        weights={"w": (6, 3 // groups, 3, 3)},
    )
    assert work_of(model, "c").flops == 2 * (2 * 6 * 16 * 24) * (3 // groups) * 9


def test_an_attention_product() -> None:
    """Q K^T of the last two axes: both operands are read, neither is a weight."""
    model = graph(
        node("Transpose", "t", "image", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "stage2.0.attn.scores.MatMul", "image kt", "y"),
        weights={},
    )
    work = work_of(model, "stage2.0.attn.scores.MatMul")
    assert work.flops == 2 * (2 * 3) * 32 * 32 * 48
    assert work.bytes == 4 * 2 * 3 * (32 * 48 + 48 * 32 + 32 * 32)
    assert (work.part, work.kind) == ("stage2.0", "attention")


def quantized(reader: str = "") -> onnx.ModelProto:
    more = (node("Relu", reader, "r", "z"),) if reader else ()
    return graph(
        node("Relu", "relu", "image", "r"),
        node("QuantizeLinear", "r.QuantizeLinear", "r s zero8", "r8"),
        node("DequantizeLinear", "r.DequantizeLinear", "r8 s zero8", "rd"),
        node("DequantizeLinear", "w.DequantizeLinear", "w8 s", "wd"),
        node("MatMul", "m", "rd wd", "y"),
        *more,
        weights={"s": (), "zero8": (), "w8": (48, 10)},
        outputs=("y", "z") if reader else ("y",),
    )


def test_eight_bits_count_as_eight_bits() -> None:
    pixels = 2 * 3 * 32 * 48
    work = work_of(quantized(), "m")
    assert work.bytes == pixels + 48 * 10 + 4 * (2 * 3 * 32 * 10)
    assert work.precision == "int8"
    assert work_of(quantized(), "relu").bytes == 4 * pixels + pixels
    assert work_of(quantized(), "r.QuantizeLinear").bytes == 0
    assert work_of(quantized(), "w.DequantizeLinear").bytes == 0


def test_a_float_reader_keeps_the_float_tensor() -> None:
    assert work_of(quantized("other"), "relu").bytes == 2 * 4 * (2 * 3 * 32 * 48)


def test_an_output_of_the_graph_keeps_the_float_tensor() -> None:
    model = quantized()
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    assert work_of(model, "relu").bytes == 2 * 4 * (2 * 3 * 32 * 48)


def test_what_passes_inside_a_kernel_is_not_moved() -> None:
    works = {work.node: work for work in count(quantized(), IMAGE)}
    pixels = 2 * 3 * 32 * 48
    both = joined([works["relu"], works["m"]])
    assert both.bytes == 4 * pixels + 48 * 10 + 4 * (2 * 3 * 32 * 10)
    assert both.flops == works["m"].flops
    assert joined([works["relu"]]).bytes == works["relu"].bytes
    again = {work.node: work for work in count(quantized("other"), IMAGE)}
    kept = joined([again["relu"], again["m"]])
    assert kept.bytes == both.bytes + 4 * pixels + pixels, "written in float, read in 8 bits"


def test_nodes_between_blocks_belong_to_their_reader() -> None:
    model = graph(
        node("Conv", "stem.conv1.Conv", "image w", "a"),
        node("Transpose", "stage1.Transpose", "a", "b", perm=[0, 2, 3, 1]),
        node("MatMul", "stage1.0.mlp.fc1.MatMul", "b v", "c"),
        node("Relu", "last", "c", "y"),
        weights={"w": (4, 3, 3, 3), "v": (4, 4)},
    )
    assert [work.part for work in count(model, IMAGE)] == ["stem", "stage1.0", "stage1.0", NOWHERE]


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (4, 3, 96, 160), (1, 3, 97, 131)])
def test_as_the_module_is_counted(exported_nano: Path, shape: Dims) -> None:
    """PyTorch's own counter on the rewritten module agrees to the FLOP."""
    works = count(onnx.load(exported_nano), shape)
    deployed, _ = to_deploy(ResT(load_card("nano").architecture))
    expected = 2 * shape[0] * cost.macs(deployed, *shape[2:])
    assert sum(work.flops for work in works) == expected
    assert {work.part for work in works} == {
        *("stem", "patch2", "patch3", "patch4", "head"),
        *("stage1.0", "stage2.0", "stage3.0", "stage3.1", "stage4.0"),
    }
    assert sum(each.flops for each in summed(works).values()) == expected


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (3, 3, 97, 131)])
def test_a_branch_that_is_cut_to_the_map(trained_v2_nano: Path, shape: Dims) -> None:
    """Its size is another tensor's shape, which inference alone does not follow."""
    model = onnx.load(trained_v2_nano)
    before = model.SerializeToString()
    works = count(model, shape)
    deployed, _ = to_deploy(build(load_card("v2-nano").architecture, 22))
    expected = 2 * shape[0] * cost.macs(deployed, *shape[2:])
    assert sum(work.flops for work in works) == expected
    cut = next(work for work in works if work.operator == "Slice")
    side = [-(-size // 4) for size in shape[2:]]
    assert sum(cut.writes.values()) == 4 * shape[0] * 32 * side[0] * side[1]
    assert model.SerializeToString() == before


def test_the_float_graph_is_not_changed(exported_nano: Path) -> None:
    model = onnx.load(exported_nano)
    before = model.SerializeToString()
    count(model, (1, 3, 64, 64))
    assert model.SerializeToString() == before


def test_unknown_shapes_are_an_error() -> None:
    strange = helper.make_node("Strange", ["image"], ["s"], name="strange", domain="nobody")
    model = graph(strange, node("Relu", "r", "s", "y"), weights={})
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(ArtifactError, match=r"the shape of s is not known \(at Strange strange\)"):
        count(model, IMAGE)


def test_an_unreadable_graph_is_an_error() -> None:
    model = graph(node("MatMul", "m", "image w", "y"), weights={"w": (7, 10)})
    with pytest.raises(ArtifactError, match="shapes of the graph do not follow from an input of 2"):
        count(model, IMAGE)


def test_another_input_is_an_error() -> None:
    model = graph(node("Relu", "r", "image", "y"), weights={})
    del model.graph.input[0].type.tensor_type.shape.dim[3]
    with pytest.raises(ArtifactError, match=r"inputs image of \[3\] axes; expected one of four"):
        count(model, IMAGE)
