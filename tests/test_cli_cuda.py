"""ONNX Runtime's CUDA provider on a real GPU, as a user meets it. Skipped where none is."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from rest_deploy import photos, verbs
from rest_deploy.artifact import read_sidecar, sidecar_path
from rest_deploy.cuda_driver import Driver
from rest_deploy.engine.providers import PROVIDERS
from rest_deploy.errors import MissingDependencyError
from rest_deploy.model.reference import Reference
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, load_reference, synthetic_images
from tests.conftest import TRAINED_V2_WEIGHTS, TRAINED_WEIGHTS
from tests.test_cli import done, refused, run

CUDA = PROVIDERS["cuda"].ort_name
BUILD = ("build-engine", "--backend", "onnxruntime", "--provider", "cuda", "--gate-images", "22")


def gpus() -> int:
    try:
        return Driver().count() if CUDA in onnxruntime.get_available_providers() else 0
    except MissingDependencyError:
        return 0


pytestmark = pytest.mark.skipif(
    gpus() == 0, reason="needs a GPU and onnxruntime-gpu with CUDA's libraries"
)


@pytest.fixture(params=["nano", "v2-nano"])
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With every output, of either family."""
    weights = TRAINED_WEIGHTS if request.param == "nano" else TRAINED_V2_WEIGHTS
    report = verbs.export(
        request.param, output_dir=tmp_path, checkpoint=weights, opset=22,
        outputs=("logits", "embedding", "features"),
    )  # fmt: skip
    return Path(report.path)


def built(export: Path, *options: str) -> Path:
    """The engine that `build-engine` makes of it."""
    said = done(*BUILD, *options, "--workspace", export.parent)
    assert "backend: onnxruntime/cuda" in said
    (engine,) = export.parent.glob("*.onnxruntime-cuda.onnx")
    return engine


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 4e-3), ("bf16", 3e-2)])
def test_every_precision(export: Path, precision: str, bound: float) -> None:
    """All matrix layers on the GPU, every output of every size near float64's, float32 not in
    TF32, whose errors are a hundred times larger."""
    engine = built(export, f"--{precision}")
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.through is not None
    assert sidecar.build.through.nodes[CUDA] > 100
    metadata = sidecar.metadata
    exact = Reference(load_reference(metadata), outputs=metadata.gives).all
    with Session.open(engine) as session:
        assert session.runner.backend == "onnxruntime/cuda"
        for batch, height, width in ((1, 224, 224), (5, 97, 131), (2, 320, 200)):
            images = synthetic_images(Case(batch=batch, height=height, width=width), seed=1)
            actual = session.run_all(images)
            expected = exact(images)
            for name, answer in actual.items():
                assert relative_error(expected[name], answer) < bound, (name, batch, height, width)


def test_the_cli(export: Path, tmp_path: Path) -> None:
    engine = built(export, "--fp16")
    photo = tmp_path / "photo.png"
    photos.load(photos.crops("test", 1, seed=0)[0]).save(photo)
    answers = [
        json.loads(done("predict", path, photo, "--json"))["images"][0]["predictions"][0]
        for path in (export, engine)
    ]
    assert answers[0]["label"] == answers[1]["label"]
    assert "on onnxruntime/cuda against PyTorch float64" in done("verify", engine)
    options = ("--workspace", export.parent)
    refused(run(*BUILD, "--int8", *options), 3, "cuda does not compute in int8")
    said = done("bench", engine, "--seconds", "0.3", "--batches", "1", "--images", "16",
                *options)  # fmt: skip
    assert "onnxruntime-cuda" in said
    assert "failed" not in said


def test_threads_share_a_session(export: Path) -> None:
    """Of any shapes at once: every answer is the one a thread alone gets."""
    engine = built(export, "--fp32")
    shapes = [(1, 64, 64), (3, 96, 64), (2, 64, 128), (4, 97, 65)]
    feeds = [
        synthetic_images(Case(batch=b, height=h, width=w), seed)
        for seed, (b, h, w) in enumerate(8 * shapes)
    ]
    with Session.open(engine) as session, ThreadPoolExecutor(8) as pool:
        alone = [session.run(feed) for feed in feeds]
        together = list(pool.map(session.run, feeds))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * float(np.abs(one).max()))


def test_a_copy_elsewhere_runs_too(export: Path, tmp_path: Path) -> None:
    """A file of this provider needs nothing beside it but its sidecar."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    engine = built(export, "--fp16", "--no-gate")
    for file in (engine, sidecar_path(engine)):
        shutil.copy(file, elsewhere)
    with Session.open(elsewhere / engine.name) as session:
        assert session.run(synthetic_images(Case(batch=1, height=64, width=64), 0)).shape[0] == 1
