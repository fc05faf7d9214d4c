"""Weights that nobody trained, from a file: with them float32 does not keep the card's bound.

The golden recipe's values make ResT v1 so ill-conditioned that PyTorch itself in float32 departs by
3e-5 from float64. The export has to succeed, equal the official outputs, and still tell a broken
graph from a good one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar
from rest_deploy.cards import load_card
from rest_deploy.errors import CheckpointError, VerificationError
from rest_deploy.model.checkpoint import load_model
from rest_deploy.report import text
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import gate
from rest_deploy.verbs.export import ExportReport
from rest_deploy.verify.parity import ParityReport
from tests.model.weights import golden_image, official, relative, set_golden
from tests.verify.test_parity import (
    Breakage,
    change,
    drop_centring,
    drop_instance_norm,
    drop_layer_norm,
    swap_channels,
)

SIZE = (64, 64)
"""Of the official outputs."""


def exported(variant: str, folder: Path, head: float = 1.0) -> ExportReport:
    """With the recipe's weights, rounded to float32 in a file: they count as trained.

    head: times the weight of the last layer.
    """
    checkpoint = folder / f"{variant}.safetensors"
    module = set_golden(load_model(load_card(variant), None).module).float()
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file({**state, "head.weight": state["head.weight"] * head}, checkpoint)
    return verbs.export(variant, output_dir=folder, checkpoint=checkpoint)


def from_official(report: ExportReport, change_input: Callable[..., torch.Tensor]) -> float:
    image = change_input(golden_image(*SIZE)).float().numpy()
    logits = torch.from_numpy(Session.open(Path(report.path)).run(image).astype(np.float64))
    return relative(logits, official(report.metadata.card.name, *SIZE))


def verify(model: Path) -> ParityReport:
    return verbs.verify(model, workspace=model.parent, sizes=((97, 131),), batches=(2,))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return exported("small", tmp_path_factory.mktemp("golden-small"))


def equals_the_official_outputs(report: ExportReport) -> None:
    assert report.metadata.weights.kind == "checkpoint"
    assert all(result.passed for result in report.parity)
    assert from_official(report, lambda image: image) < 1e-4
    assert from_official(report, lambda image: image.flip(1)) > 1e-2, "channels swapped"


SLOW = ("base", "large", "v2-tiny", "v2-small", "v2-base", "v2-large")


@pytest.mark.parametrize(
    "variant", ["lite", *(pytest.param(variant, marks=pytest.mark.slow) for variant in SLOW)]
)
def test_the_export_equals_the_official_outputs(variant: str, tmp_path: Path) -> None:
    equals_the_official_outputs(exported(variant, tmp_path))


def test_small_equals_the_official_outputs(small: ExportReport) -> None:
    """Its own test: the export is shared with those below."""
    equals_the_official_outputs(small)


def test_both_bounds_are_told_and_stored(small: ExportReport) -> None:
    """The card's bound is exceeded, by PyTorch in float32 as well."""
    for result in small.parity:
        assert result.card_bound == small.metadata.card.parity.relative_error == 1e-5
        assert result.bound == result.float32_error
    worst = max(small.parity, key=lambda result: result.relative_error)
    assert 1e-5 < worst.relative_error <= worst.bound < 1e-4
    sidecar = read_sidecar(Path(small.path))
    assert sidecar is not None
    assert sidecar.parity is not None
    stored = (sidecar.parity.relative_error, sidecar.parity.bound, sidecar.parity.card_bound)
    assert stored == (worst.relative_error, worst.bound, 1e-5)
    assert sidecar.parity.float32_error == worst.float32_error
    assert f"PyTorch itself in float32 {worst.float32_error:.1e}" in text.inspection(
        verbs.inspect(Path(small.path))
    )
    assert f"{worst.float32_error:.1e}" in text.export(small)


def test_weights_that_float32_cannot_compute(tmp_path: Path) -> None:
    """Finite in the file, infinite on the way: PyTorch's own error allows nothing then."""
    with pytest.raises(VerificationError) as caught:
        exported("nano", tmp_path, head=3e38)
    assert "float32 cannot compute these weights: PyTorch itself departs by inf" in str(
        caught.value
    )
    assert "--checkpoint" in (caught.value.hint or "")
    assert not list(tmp_path.glob("*.onnx"))


def test_the_gate_of_a_float32_engine_has_the_same_bound(
    small: ExportReport, tmp_path: Path
) -> None:
    report = verbs.build_engine(
        Path(small.path),
        verbs.Request(precision="fp32", gate_images=8),
        workspace=tmp_path,
        backend="onnxruntime",
    )
    assert report.build.gate is not None
    assert report.build.gate.passed
    check = report.build.gate.checks[0]
    assert 1e-5 < check.value <= check.bound < 1e-4
    assert check.detail.startswith("PyTorch itself in float32")


@pytest.mark.parametrize(("allowed", "expected"), [(True, 3e-5), (False, 0.0)])
def test_without_the_weights_the_exports_proof_counts(
    small: ExportReport, monkeypatch: pytest.MonkeyPatch, allowed: bool, expected: float
) -> None:
    """What it had to allow the export, or nothing where the card's bound was kept."""

    def gone(*_: object) -> None:
        raise CheckpointError("the checkpoint is not there")

    monkeypatch.setattr(gate, "load_reference", gone)
    source = Session.open(Path(small.path))
    assert source.sidecar is not None
    assert source.sidecar.parity is not None
    if not allowed:
        kept = msgspec.structs.replace(source.sidecar.parity, float32_error=None)
        source.sidecar = msgspec.structs.replace(source.sidecar, parity=kept)
    images = np.zeros((1, 3, 64, 64), np.float32)
    found = gate.float32_errors(source, images, None, {"logits": np.ones((1, 1000))})
    assert found == {"logits": pytest.approx(expected, rel=0.3)}


def perturb_slightly(graph: onnx.GraphProto) -> None:
    """A ten-thousandth of one of 138 weights."""
    change(graph, "stage3.1.attn.v.weight.T", lambda weight: weight * 1.0001)


def nothing(graph: onnx.GraphProto) -> None:
    pass


@pytest.mark.parametrize(
    ("breakage", "good"),
    [
        (nothing, True),
        (swap_channels, False),
        (drop_layer_norm, False),
        (drop_instance_norm, False),
        (drop_centring, False),
        (perturb_slightly, False),
    ],
)
def test_broken_engines_fail(
    small: ExportReport, tmp_path: Path, breakage: Breakage, good: bool
) -> None:
    model = onnx.load(small.path)
    breakage(model.graph)
    broken = tmp_path / Path(small.path).name
    onnx.save(model, broken)
    report = verify(broken)
    assert report.passed is good
    (result,) = report.results
    assert result.float32_error is not None, "the card's bound is exceeded, broken or not"
    assert result.bound == max(result.card_bound, result.float32_error)
    if not good:
        assert result.relative_error > 5 * result.bound
