"""Every command on models with other outputs and with pixels as input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar
from rest_deploy.contracts import Precision
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.errors import InputError
from rest_deploy.runtime.session import Session
from rest_deploy.signature import OutputKind
from rest_deploy.verbs import BenchWishes, Images, Request, Wishes
from rest_deploy.verbs.engines import find
from tests.conftest import TRAINED_WEIGHTS
from tests.doubles.gpu import simulated_gpu

QUICK = Request(precision="int8", images=Images(limit=48), gate_images=44)
CHECKS = {
    "relative logit error", "top-1 agreement", "KL divergence", "relative error of probabilities",
    "top-1 agreement of probabilities", "KL divergence of probabilities",
    "relative error of embedding", "nearest neighbours kept", "relative error of c2",
    "relative error of c3", "relative error of c4", "relative error of c5",
}  # fmt: skip


@pytest.fixture
def workspace(everything_nano: Path, tmp_path: Path) -> Path:
    shutil.copytree(everything_nano.parent, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def of_pixels(pixels_nano: Path, tmp_path: Path) -> Path:
    shutil.copytree(pixels_nano.parent, tmp_path / "pixels")
    return tmp_path / "pixels"


def test_file_names(everything_nano: Path, pixels_nano: Path) -> None:
    assert everything_nano.name == "rest_nano.logits+probabilities+embedding+features.onnx"
    assert pixels_nano.name == ("rest_nano.logits+probabilities+unit-embedding+features.uint8.onnx")


def test_verify_tells_every_output(workspace: Path) -> None:
    report = verbs.verify(None, workspace=workspace, sizes=((200, 225),), batches=(1,))
    assert report.passed
    assert [result.output for result in report.results] == [
        "logits", "probabilities", "embedding", "c2", "c3", "c4", "c5"
    ]  # fmt: skip
    assert [result.kl is None for result in report.results] == [False] * 2 + [True] * 5
    assert max(result.relative_error for result in report.results) < 2e-6


@pytest.mark.parametrize(
    ("folder", "backend"), [("workspace", "onnxruntime"), ("of_pixels", "openvino")]
)
def test_int8_on_a_cpu(folder: str, backend: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip(backend)
    here: Path = request.getfixturevalue(folder)
    report = verbs.build_engine(None, QUICK, workspace=here, backend=backend)
    assert report.build.gate is not None
    assert {check.name for check in report.build.gate.checks} >= CHECKS
    with Session.open(report.path) as session:
        kind = session.metadata.input_kind
        shape = (1, 64, 96, 3) if kind == "uint8" else (1, 3, 64, 96)
        found = session.run_all(np.zeros(shape, "uint8" if kind == "uint8" else "float32"))
        assert found["c2"].shape[2:] == (16, 24)


@pytest.mark.parametrize(("folder", "precision"), [("workspace", "fp16"), ("of_pixels", "int8")])
def test_nvidias_builder(
    folder: str, precision: Precision, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Built by NVIDIA's real builder, judged and run on the simulated GPU."""
    pytest.importorskip("tensorrt_rtx_bindings")
    here: Path = request.getfixturevalue(folder)
    flavour: Flavour = "tensorrt-rtx"
    simulated_gpu(monkeypatch, tmp_path, flavour)
    report = verbs.build_engine(
        None, replace(QUICK, precision=precision), workspace=here, backend=flavour,
        wishes=Wishes(max_shapes=("4x3x224x224",), target_sm=("89",)),
    )  # fmt: skip
    assert report.build.gated == "the engine itself, on the GPU here"
    assert report.build.gate is not None
    assert {check.name for check in report.build.gate.checks} >= CHECKS
    assert report.build.fit is not None
    assert report.build.fit.profiles[0].maximum == (4, 3, 224, 224)


@pytest.mark.slow
def test_bench_looks_at_every_output(of_pixels: Path) -> None:
    record = verbs.bench(
        (), BenchWishes(batches=(1,), seconds=0.2, images=16), workspace=of_pixels, command="test"
    ).record
    pytorch, export = record.engines
    assert (pytorch.failed, export.failed) == ("", "")
    assert export.accuracy is not None
    assert export.accuracy.relative_error < 1e-5
    assert export.accuracy.agreement == 1
    assert {m.mode for m in export.measurements} == {"isolated", "saturated", "end-to-end"}
    assert export.blocks
    assert export.start is not None


@pytest.mark.slow
def test_sensitivity_is_of_the_first_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an embedding, which has neither classes nor a budget in them."""
    from rest_deploy.quant import sensitivity as study

    verbs.export(
        "nano", output_dir=tmp_path, checkpoint=TRAINED_WEIGHTS, outputs=("embedding",),
        input_kind="uint8",
    )  # fmt: skip
    shares = study.shares
    monkeypatch.setattr(study, "shares", lambda *a: dict(list(shares(*a).items())[:2]))
    report = verbs.sensitivity(None, workspace=tmp_path, images=Images(limit=16), gate_images=16)
    assert (report.whole.kl, report.whole.agreement) == (None, None)
    assert 0 < report.whole.relative_error < 0.1
    with pytest.raises(InputError, match="no classes, so that it has no agreement"):
        verbs.sensitivity(
            None, workspace=tmp_path, images=Images(limit=16), gate_images=16,
            budget="agreement>=99%",
        )  # fmt: skip


def test_engines_of_other_outputs_are_not_compared(
    everything_nano: Path, trained_nano: Path, tmp_path: Path
) -> None:
    for model in (trained_nano, everything_nano):
        shutil.copytree(model.parent, tmp_path, dirs_exist_ok=True)
    newest = max(tmp_path.glob("*.onnx"), key=lambda path: path.stat().st_mtime_ns)
    found, notes = find((), tmp_path)
    assert [one.path for one in found] == [newest]
    assert "has other outputs than" in notes[0]
    with pytest.raises(InputError, match="different outputs"):
        find(sorted(tmp_path.glob("*.onnx")), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("input_kind", ["float", "uint8"])
@pytest.mark.parametrize(
    ("outputs", "unit_length"),
    [
        (("logits",), False),
        (("probabilities",), False),
        (("embedding",), False),
        (("embedding",), True),
        (("features",), False),
        (("features", "embedding"), True),
    ],
)
def test_every_combination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[OutputKind, ...],
    unit_length: bool, input_kind: str,
) -> None:  # fmt: skip
    """Exported, at parity at three sizes, in FP16 and INT8 by NVIDIA's builder, and run."""
    pytest.importorskip("tensorrt_rtx_bindings")
    report = verbs.export(
        "nano", output_dir=tmp_path, checkpoint=TRAINED_WEIGHTS, outputs=outputs,
        unit_length=unit_length, input_kind=input_kind,  # type: ignore[arg-type]  # one of two
    )  # fmt: skip
    sizes = ((224, 224), (200, 225), (512, 384))
    parity = verbs.verify(Path(report.path), workspace=tmp_path, sizes=sizes, batches=(1,))
    assert parity.passed
    (tmp_path / "gpu").mkdir()
    simulated_gpu(monkeypatch, tmp_path / "gpu", "tensorrt-rtx")
    precisions: tuple[Precision, ...] = ("fp16", "int8")
    for precision in precisions:
        built = verbs.build_engine(
            None, replace(QUICK, precision=precision), workspace=tmp_path,
            backend="tensorrt-rtx", wishes=Wishes(max_shapes=("4x3x224x224",), target_sm=("89",)),
        )  # fmt: skip
        assert built.build.gated == "the engine itself, on the GPU here"
        described = read_sidecar(Path(built.path))
        assert described is not None
        assert described.metadata.gives == report.metadata.gives
