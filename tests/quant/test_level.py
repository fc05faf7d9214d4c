from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy import verbs
from rest_deploy.cards import load_card
from rest_deploy.quant.dataset import open_set
from rest_deploy.quant.level import level
from rest_deploy.quant.replay import open_session, with_outputs
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images

IMAGES = synthetic_images(Case(batch=4, height=96, width=64))
CARD = load_card("nano")
PROJ = "stage3.1.attn.Reshape_5.out"


def logits(model: ir.Model, folder: Path, images: np.ndarray = IMAGES) -> np.ndarray:
    ir.save(model, folder / "model.onnx")
    return Session.open(folder / "model.onnx").run(images)


@pytest.mark.parametrize(("height", "width"), [(96, 64), (33, 47), (32, 32)])
def test_the_function_stays(exported_nano: Path, tmp_path: Path, height: int, width: int) -> None:
    """At 32x32 stage 4 has one key: v centred over the keys is zero, and so is rho."""
    images = synthetic_images(Case(batch=2, height=height, width=width))
    model = ir.load(exported_nano)
    assert level(model) == 4
    expected = Session.open(exported_nano).run(images).astype(np.float64)
    assert relative_error(expected, logits(model, tmp_path, images)) < 2e-5


def test_without_the_multiplication_it_is_noticed(exported_nano: Path, tmp_path: Path) -> None:
    model = ir.load(exported_nano)
    level(model)
    node = next(n for n in model.graph if n.name == "stage4.0.attn.level.Mul_1")
    loud, quiet = node.outputs[0], node.inputs[0]
    assert quiet is not None
    for use in list(loud.uses()):
        use.node.replace_input_with(use.idx, quiet)
    expected = Session.open(exported_nano).run(IMAGES).astype(np.float64)
    assert relative_error(expected, logits(model, tmp_path)) > 1e-2


def test_a_loud_image_no_longer_sets_the_scale(trained_nano: Path) -> None:
    """Spread of proj's input over real photos: the loudest image's largest value to the median."""
    photos = np.concatenate(list(open_set(None, CARD.preprocessing, limit=22).batches(22)))

    def spread(model: ir.Model) -> float:
        session = open_session(with_outputs(model, [PROJ]))
        largest = np.abs(session.run(None, {"image": photos})[0]).max(axis=(1, 2))
        return float(largest.max() / np.median(largest))

    model = ir.load(trained_nano)
    before = spread(model)
    level(model)
    assert spread(model) < before / 1.5


def test_other_forms_of_the_norm_are_left_alone(tmp_path: Path) -> None:
    model = verbs.export("nano", output_dir=tmp_path, instance_norm="native").path
    graph = ir.load(model)
    before = len(graph.graph)
    assert level(graph) == 0
    assert len(graph.graph) == before


def test_without_a_norm_there_is_nothing_to_level(trained_v2_nano: Path) -> None:
    """A softmax row bounds the context: ResT v2 has no norm behind it."""
    graph = ir.load(trained_v2_nano)
    before = len(graph.graph)
    assert level(graph) == 0
    assert len(graph.graph) == before
