"""Whether a shipped recipe fits a checkpoint: the gate's error beside the receipt's."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar
from rest_deploy.contracts import Build, GateCheck, GateResult, ModelMetadata
from rest_deploy.quant.receipt import Measured, Receipt
from rest_deploy.report import quantization as text
from rest_deploy.verbs import Images, Request, receipt
from rest_deploy.verbs.receipt import misfit, receipt_for
from rest_deploy.verify.gate import LOGIT_ERROR

ROW = Measured(
    recipe="int8", backend="onnxruntime", images=128, relative_error=1e-3, agreement=1.0,
    top1_reference=0.9, top1_engine=0.9, speed=(),
)  # fmt: skip


def build(error: float = 1e-3, backend: str = "onnxruntime", recipe: str = "int8") -> Build:
    check = GateCheck(name=LOGIT_ERROR, value=error, bound=1.0, passed=True)
    gate = GateResult(reference="", images=1, source="", checks=(check,))
    return Build(
        precision="int8", backend=backend, io_type="float32", obtained={}, source_sha256="",
        recipe=recipe, gate=gate,
    )  # fmt: skip


@pytest.fixture
def metadata(trained_nano: Path, monkeypatch: pytest.MonkeyPatch) -> ModelMetadata:
    shipped = Receipt(
        schema=1, variant="nano", state_sha256="", classes=22, training="", command="", machine="",
        measured=(ROW,),
    )  # fmt: skip
    monkeypatch.setattr(receipt, "load_receipt", lambda name: shipped if name == "nano" else None)
    sidecar = read_sidecar(trained_nano)
    assert sidecar is not None
    return sidecar.metadata


def test_the_row_of_the_same_recipe_and_backend(metadata: ModelMetadata) -> None:
    assert receipt_for(metadata, build()) == ROW
    assert receipt_for(metadata, build(backend="onnx")) == ROW
    assert receipt_for(metadata, build(backend="openvino")) is None
    assert receipt_for(metadata, build(recipe="mine")) is None
    assert receipt_for(metadata, build(recipe="")) is None


def test_nothing_to_compare(metadata: ModelMetadata) -> None:
    replace = msgspec.structs.replace
    fresh = replace(metadata, weights=replace(metadata.weights, kind="fresh"))
    assert receipt_for(fresh, build()) is None
    assert receipt_for(replace(metadata, variant="other"), build()) is None
    assert receipt_for(metadata, replace(build(), gate=None)) is None


def test_a_recipe_that_does_not_fit_is_said_with_both_errors() -> None:
    assert misfit(ROW, build(error=1.9e-3)) == []
    (warning,) = misfit(ROW, build(error=5e-3))
    assert "5.0 times" in warning
    assert "5.0e-03, 1.0e-03" in warning
    assert "rest-deploy sensitivity" in warning
    assert misfit(ROW, build(error=float("nan")))
    assert misfit(None, build(error=5e-3)) == []


def test_a_build_shows_its_receipt(
    metadata: ModelMetadata, trained_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(precision="int8", images=Images(limit=16), gate_images=22)
    report = verbs.build_engine(trained_nano, request, workspace=tmp_path, backend="onnxruntime")
    assert metadata.variant == "nano"
    assert report.receipt == ROW
    said = text.build(report)
    assert "receipt of int8: error 1.0e-03, agreement 100.0% on a trained rest_nano" in said
    # 16 images and a receipt of a tenth of nano's error: the warning has to be there.
    tight = msgspec.structs.replace(ROW, relative_error=1e-5)
    assert report.build.gate is not None
    assert misfit(tight, report.build)


def test_where_the_cpu_is_the_reason_the_checkpoint_is_not_blamed() -> None:
    (warning,) = misfit(ROW, build(2.1e-3), "this CPU saturates")
    assert warning == (
        "recipe int8 costs here 2.1 times the error of its receipt (2.1e-03, 1.0e-03): this CPU "
        "saturates"
    )
    assert misfit(ROW, build(1.9e-3), "this CPU saturates") == []
