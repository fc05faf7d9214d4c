"""The wrapper around a backbone: what was asked for, nothing else, and the same default graph."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch

from rest_deploy.cards import load_card
from rest_deploy.errors import ShapeError
from rest_deploy.graph.export import trace
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.checkpoint import load_model
from rest_deploy.model.deploy import to_deploy
from rest_deploy.model.outputs import Outputs, Pixels
from rest_deploy.model.reference import Reference
from rest_deploy.preprocess import normalize
from rest_deploy.signature import OUTPUT_KINDS, OutputKind, outputs_for
from rest_deploy.verify.parity import Case, synthetic_images

CARD = load_card("nano")
MODULE = load_model(CARD, None, num_classes=4).module


def wrapped(*kinds: OutputKind, unit_length: bool = False, module: Backbone = MODULE) -> Outputs:
    found = outputs_for(kinds, CARD.architecture, 4, unit_length=unit_length)
    return Outputs(to_deploy(module)[0], found)


def graph_of(module: torch.nn.Module, *names: str) -> bytes:
    proto = ir.to_proto(trace(module, 20, names)[0])
    return bytes(proto.SerializeToString(deterministic=True))


def test_the_default_graph_is_the_backbones_own() -> None:
    """Byte for byte: nodes, names, weights. Another output is another graph."""
    own = graph_of(to_deploy(MODULE)[0], "logits")
    assert graph_of(wrapped("logits"), "logits") == own
    assert graph_of(wrapped("probabilities"), "logits") != own


def test_every_output_is_the_backbones() -> None:
    """Against the reference module itself, in float64, at a size no stride divides."""
    images = synthetic_images(Case(batch=2, height=97, width=131))
    module = copy.deepcopy(MODULE).double()
    exact = Reference(module, outputs=outputs_for(OUTPUT_KINDS, CARD.architecture, 4)).all(images)
    with torch.inference_mode():
        tensors = torch.from_numpy(images).double()
        features, logits = module.features(tensors), module(tensors)
        found = dict(zip(exact, wrapped(*OUTPUT_KINDS, module=module)(tensors), strict=True))
    for name, value in exact.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-9, atol=1e-9)
    for name in ("c2", "c3", "c4"):
        np.testing.assert_allclose(exact[name], getattr(features, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(exact["logits"], logits, rtol=1e-9, atol=1e-9)
    last = exact["c5"].reshape(*exact["c5"].shape[:2], -1).transpose(0, 2, 1)
    np.testing.assert_allclose(last, features.tokens, rtol=1e-9, atol=1e-9)
    sides = [exact[name].shape[2:] for name in ("c2", "c3", "c4", "c5")]
    assert sides == [(25, 33), (13, 17), (7, 9), (4, 5)]
    np.testing.assert_allclose(exact["probabilities"].sum(axis=1), 1, rtol=1e-12)


def test_unit_length() -> None:
    images = torch.from_numpy(synthetic_images(Case(batch=2, height=64, width=64)))
    with torch.inference_mode():
        plain = wrapped("embedding")(images)
        unit = wrapped("embedding", unit_length=True)(images)
        logits, beside = wrapped("logits", "embedding", unit_length=True)(images)
        alone = wrapped("logits")(images)
    assert torch.allclose(unit.norm(dim=1), torch.ones(2))
    assert torch.allclose(unit, torch.nn.functional.normalize(plain), atol=1e-6)
    assert torch.equal(beside, unit)
    assert torch.equal(logits, alone), "the head reads the embedding as it is"


def test_nothing_that_is_not_asked_for() -> None:
    def operators(*kinds: OutputKind) -> list[str]:
        names = [o.name for o in outputs_for(kinds, CARD.architecture, 4)]
        model, _ = trace(wrapped(*kinds), 20, names)
        return [node.name or "" for node in model.graph]

    pyramid = operators("features")
    assert not [name for name in pyramid if name.startswith(("head", "norm.", "ReduceMean"))]
    assert not [name for name in operators("embedding") if name.startswith(("head", "c5"))]
    assert [name for name in operators("logits") if name.startswith("head")]


def test_pixels_are_normalized_as_everywhere() -> None:
    """Bit for bit what `preprocess.normalize` makes, of every value a pixel can have."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), np.uint8)
    pixels[0].reshape(-1)[:256] = np.arange(256)
    found = Pixels(CARD.preprocessing)(torch.from_numpy(pixels)).numpy()
    exact = np.stack([normalize(image, CARD.preprocessing) for image in pixels])
    np.testing.assert_array_equal(found, exact)


def test_small_images_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least 32"):
        wrapped("features")(torch.zeros(1, 3, 31, 64))
