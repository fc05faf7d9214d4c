"""The gate on the engine itself, on a simulated GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy import verbs
from rest_deploy.contracts import Profile
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.errors import ShapeError, VerificationError
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import BuildReport, Images, Request, Wishes
from rest_deploy.verbs.judge import batches_at
from tests.doubles.gpu import simulated_gpu

pytest.importorskip("tensorrt_rtx_bindings")
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
REQUEST = Request(precision="fp16", images=Images(limit=16), gate_images=22)


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_nano.parent, tmp_path / "workspace")
    return tmp_path / "workspace"


def build(workspace: Path, flavour: str, *shapes: str) -> BuildReport:
    return verbs.build_engine(
        None, REQUEST, workspace=workspace, backend=flavour, wishes=Wishes(max_shapes=shapes)
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_engine_itself(
    workspace: Path, tmp_path: Path, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, judged and run: the session answers what the graph's does."""
    trt = simulated_gpu(monkeypatch, tmp_path, flavour)
    report = build(workspace, flavour)
    assert report.build.gated == "the engine itself, on the GPU here"
    assert report.build.gate is not None
    assert report.build.gate.passed
    assert report.warnings == ()
    assert trt.cuda.held() == dict.fromkeys(trt.cuda.held(), 0)

    graph = Session.open(tmp_path / "0.graph.onnx", metadata=report.metadata)
    with Session.open(report.path) as session:
        images = np.random.default_rng(0).standard_normal((3, 3, 64, 96)).astype(np.float32)
        for _ in range(3):
            assert np.abs(session.run(images) - graph.run(images)).max() < 1e-3
        assert session.runner.backend == f"{flavour}/cuda:0"
    kernels = workspace / f"{Path(report.path).name}.sm89.kernels"
    assert kernels.is_file() == (flavour == "tensorrt-rtx")


def test_an_engine_that_answers_otherwise(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the graph's gate cannot see: the engine computes something else."""
    simulated_gpu(monkeypatch, tmp_path, "tensorrt-rtx")
    run = Session.run_all

    def wrong(self: Session, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        answers = run(self, images)
        if self.path.suffix != ".engine":
            return answers
        return {name: answer[:, ::-1] for name, answer in answers.items()}

    monkeypatch.setattr(Session, "run_all", wrong)
    with pytest.raises(VerificationError, match="does not pass the accuracy gate"):
        build(workspace, "tensorrt-rtx")
    assert list(workspace.glob("*.engine")) == []


def test_a_size_that_no_profile_holds(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_gpu(monkeypatch, tmp_path, "tensorrt-rtx")
    report = build(workspace, "tensorrt-rtx", "4x3x96x96")
    (warning,) = report.warnings
    assert warning.startswith("the gate looked at the graph; the engine itself was not run here: ")
    assert warning.endswith("no profile of the engine holds images of 224x224")


def test_a_gpu_it_was_not_built_for(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_gpu(monkeypatch, tmp_path, "tensorrt-rtx", sm="90")
    (warning,) = build(workspace, "tensorrt-rtx").warnings
    assert warning.endswith("it was built for compute capability 86, 89, 120, the GPU here has 90")


def test_batches_of_the_roomiest_profile() -> None:
    def profile(least: int, most: int, side: int) -> Profile:
        return Profile(
            minimum=(least, 3, 32, 32), optimum=(most, 3, 32, 32), maximum=(most, 3, side, side)
        )

    profiles = (profile(1, 4, 512), profile(8, 32, 224), profile(1, 8, 224))
    assert batches_at(profiles, (224, 200)) == (8, 32)
    assert batches_at(profiles, (512, 224)) == (1, 4)
    with pytest.raises(ShapeError, match="no profile of the engine holds images of 224x513"):
        batches_at(profiles, (224, 513))
