"""ResT v2 as a graph: dynamic, in the vocabulary of v1, the same function at any size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from rest_deploy import verbs
from rest_deploy.errors import InputError
from rest_deploy.graph.precision import ISLAND, to_sixteen_bit
from rest_deploy.graph.roles import part, place
from rest_deploy.model.reference import Reference
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, load_reference, synthetic_images

SIZES = [(32, 32), (97, 131), (224, 224), (200, 225), (512, 384)]


@pytest.fixture(scope="module")
def reference(trained_v2_nano: Path) -> Reference:
    return Reference(load_reference(Session.open(trained_v2_nano).metadata))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_parity(trained_v2_nano: Path, reference: Reference, height: int, width: int) -> None:
    """Ratios of 8, 4 and 2 divide 32, 224 and 512 all the way, none of the other sizes."""
    images = synthetic_images(Case(batch=1, height=height, width=width))
    error = relative_error(reference(images), Session.open(trained_v2_nano).run(images))
    assert error < 2e-6


def test_a_branch_that_is_not_cut_is_noticed(
    trained_v2_nano: Path, reference: Reference, tmp_path: Path
) -> None:
    """Where the ratio does not divide the map, the graph without its Slice does not even run."""
    model = ir.load(trained_v2_nano)
    for node in list(model.graph):
        if node.op_type == "Slice":
            source = node.inputs[0]
            assert source is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
    ir.save(model, tmp_path / "uncut.onnx")
    session = Session.open(tmp_path / "uncut.onnx")
    whole = synthetic_images(Case(batch=1, height=64, width=96))
    assert relative_error(reference(whole), session.run(whole)) < 2e-6
    with pytest.raises(Exception, match=r"(?i)add|broadcast"):
        session.run(synthetic_images(Case(batch=1, height=97, width=131)))


def test_no_size_of_the_example_is_written_down(trained_v2_nano: Path) -> None:
    """2x3x96x160 is traced: neither widths of its maps nor their numbers of tokens are there (its
    heights are channels too)."""
    sizes = {160, 40, 20, 10, 5, 24 * 40, 12 * 20, 6 * 10, 3 * 5}
    found = set()
    for node in ir.load(trained_v2_nano).graph:
        for value in node.inputs[1:]:
            constant = value.const_value if value is not None else None
            if constant is not None and constant.dtype == ir.DataType.INT64:
                found |= set(constant.numpy().ravel().tolist())
    assert {0, -1, 64} <= found
    assert found.isdisjoint(sizes)


def test_every_node_is_in_a_part_of_the_network(trained_v2_nano: Path) -> None:
    graph = onnx.load(trained_v2_nano).graph
    parts = Counter(part(node.name) for node in graph.node)
    assert set(parts) - {None} == {
        *("stem", "patch2", "patch3", "patch4", "head"),
        *("stage1.0", "stage2.0", "stage3.0", "stage3.1", "stage4.0"),
    }


def test_every_layer_has_a_role(trained_v2_nano: Path) -> None:
    """5 blocks, one of them with one head: no q, its bias in k_offset."""
    graph = onnx.load(trained_v2_nano).graph
    layers = [node.name for node in graph.node if node.op_type in {"MatMul", "Gemm", "Conv"}]
    found = [place(name) for name in layers]
    assert None not in found
    assert Counter(here.role for here in found if here is not None) == {
        "stem": 3, "patch": 3, "pa": 4, "sr": 4, "up": 5, "qkv": 14, "offset": 1, "scores": 5,
        "context": 5, "proj": 5, "mlp": 10, "head": 1,
    }  # fmt: skip
    blocks = {here.block for here in found if here is not None}
    assert {"stem.conv2", "patch_2", "stage3.1", "head"} <= blocks


def test_operators(trained_v2_nano: Path) -> None:
    operators = Counter(node.op_type for node in onnx.load(trained_v2_nano).graph.node)
    assert (operators["DepthToSpace"], operators["Slice"], operators["Softmax"]) == (4, 4, 5)
    assert not {"Expand", "Identity", "BatchNormalization", "InstanceNormalization"} & set(
        operators
    )


def test_the_softmax_alone_stays_in_float32(trained_v2_nano: Path) -> None:
    model = ir.load(trained_v2_nano)
    islands = [node.name for node in model.graph if ISLAND.fullmatch(node.name or "")]
    assert len(islands) == 5
    types = to_sixteen_bit(model, "fp16")
    assert types["float"] == 5
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert {node.outputs[0].dtype for node in norms} == {ir.DataType.FLOAT16}


def test_there_is_no_form_of_a_norm_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--instance-norm native: the attention of v2-nano has no"):
        verbs.export("v2-nano", output_dir=tmp_path, instance_norm="native")
    assert not list(tmp_path.iterdir())
