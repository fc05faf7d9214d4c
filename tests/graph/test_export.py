"""The exported file: dynamic, named by block, described, the same function at any size."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from rest_deploy import verbs
from rest_deploy.artifact import METADATA_KEY, data_path, parse_metadata, read_sidecar
from rest_deploy.cards import load_card
from rest_deploy.contracts import InstanceNormForm
from rest_deploy.errors import ArtifactError, InputError
from rest_deploy.graph import export
from rest_deploy.graph.export import trace
from rest_deploy.model.checkpoint import load_model
from rest_deploy.model.deploy import to_deploy
from rest_deploy.model.reference import Reference
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images


def test_axes_are_named(exported_nano: Path) -> None:
    graph = onnx.load(exported_nano).graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert graph.input[0].name == "image"
    assert dims == ["batch", 3, "height", "width"]
    assert graph.output[0].name == "logits"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_every_node_names_its_block(exported_nano: Path) -> None:
    names = [node.name for node in onnx.load(exported_nano).graph.node]
    top = {name.split(".")[0] for name in names}
    assert top <= {"stem", "patch_embed_2", "patch_embed_3", "patch_embed_4", "stage1", "stage2",
                   "stage3", "stage4", "norm", "head",
                   "Reshape", "Transpose", "ReduceMean"}  # fmt: skip  # of the top module itself
    assert len(set(names)) == len(names)
    assert "stage3.1.attn.q.MatMul" in names
    assert "stage3.1.attn.scores.MatMul" in names
    assert "stage3.1.attn.context.MatMul" in names


def test_every_weight_gemm_reads_a_constant(exported_nano: Path) -> None:
    """7 a block (q, k, v, proj, fc1, fc2 with k and v apart make 6) plus two attention products."""
    graph = onnx.load(exported_nano).graph
    constants = {initializer.name for initializer in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    weighted = [node for node in products if node.input[1] in constants]
    assert (len(products), len(weighted)) == (5 * 8 - 1, 5 * 6 - 1)
    weights = r"\.(q|k|k_offset|v|proj|fc1|fc2)\.MatMul$"
    assert all(re.search(weights, node.name) for node in weighted)


def test_no_traced_size_and_no_machine_path_survive(exported_nano: Path) -> None:
    text = str(onnx.load(exported_nano))
    assert "stack_trace" not in text
    assert "site-packages" not in text


def test_operators_per_form(tmp_path: Path) -> None:
    loaded = load_model(load_card("nano"), None, num_classes=4)
    operators: dict[str, Counter[str]] = {}
    forms: tuple[InstanceNormForm, ...] = ("folded", "native", "decomposed")
    for form in forms:
        model, _ = trace(to_deploy(loaded.module, form)[0], 20, ["logits"])
        operators[form] = Counter(node.op_type for node in model.graph)
    assert operators["native"]["InstanceNormalization"] == 4
    assert "InstanceNormalization" not in operators["folded"]
    assert all(found["Softmax"] == 5 and found["Gelu"] == 5 for found in operators.values())
    assert all("Expand" not in found and "Identity" not in found for found in operators.values())


@pytest.mark.parametrize("opset", [17, 24, 0])
def test_opset_outside_the_range(opset: int) -> None:
    loaded = load_model(load_card("nano"), None, num_classes=4)
    with pytest.raises(InputError, match=f"opset {opset} is not supported; expected 18 to 23"):
        trace(to_deploy(loaded.module)[0], opset, ["logits"])


def test_metadata_and_sidecar_agree(exported_nano: Path) -> None:
    found = {p.key: p.value for p in onnx.load(exported_nano).metadata_props}
    metadata = parse_metadata(found[METADATA_KEY], exported_nano)
    sidecar = read_sidecar(exported_nano)
    assert sidecar is not None
    assert sidecar.metadata == metadata
    assert metadata.variant == "nano"
    assert len(metadata.labels) == metadata.num_classes
    assert metadata.card.preprocessing.crop == 224
    assert sidecar.parity is not None
    assert sidecar.parity.relative_error <= sidecar.parity.bound
    assert len(sidecar.parity.cases) == 3


@pytest.mark.parametrize("case", [(1, 32, 32), (2, 33, 64), (3, 75, 41), (1, 160, 96)])
def test_other_sizes_than_the_traced_one(exported_nano: Path, case: tuple[int, int, int]) -> None:
    session = Session.open(exported_nano)
    classes, weights = session.metadata.num_classes, session.metadata.weights
    card = load_card("nano")
    loaded = load_model(card, None, num_classes=classes, seed=weights.seed)
    images = synthetic_images(Case(batch=case[0], height=case[1], width=case[2]))
    expected = Reference(loaded.module)(images)
    assert relative_error(expected, session.run(images)) < 5e-5
    assert relative_error(expected, session.run(np.ascontiguousarray(images[:, ::-1]))) > 1e-3


def test_weights_beyond_the_limit_lie_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protobuf holds 2 GiB; here the limit is lowered instead of the model raised."""
    monkeypatch.setattr(export, "INLINE_LIMIT_BYTES", 1000)
    model = Path(verbs.export("nano", output_dir=tmp_path, num_classes=4).path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rest_nano.onnx", "rest_nano.onnx.data", "rest_nano.onnx.json"}
    images = synthetic_images(Case(batch=1, height=64, width=64))
    assert Session.open(model).run(images).shape == (1, 4)
    data_path(model).write_bytes(bytes(data_path(model).stat().st_size))
    with pytest.raises(ArtifactError, match="is another file"):
        Session.open(model)
    data_path(model).unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        Session.open(model)
