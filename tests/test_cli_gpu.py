"""The commands on a machine with a GPU, which is simulated; NVIDIA's builder is real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rest_deploy import photos
from rest_deploy.artifact import read_sidecar, sidecar_path
from rest_deploy.engine import backends
from tests.conftest import TRAINED_WEIGHTS
from tests.doubles.gpu import simulated_gpu
from tests.doubles.tensorrt import SimulatedTensorRt
from tests.test_cli import done, refused, run

pytest.importorskip("tensorrt_rtx_bindings")
SMALL = ("--gate-images", "22", "--max-shapes", "16x3x224x224")


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_nano.parent, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedTensorRt:
    return simulated_gpu(monkeypatch, tmp_path, "tensorrt")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    photos.load(photos.crops("test", 1, seed=0)[0]).save(path)
    return path


def test_a_server(workspace: Path, gpu: SimulatedTensorRt, photo: Path) -> None:
    """Built by `auto`, judged on the GPU, asked, verified, refitted."""
    said = done("build-engine", "--fp16", "--refit", "--workspace", workspace, *SMALL)
    engine = workspace / "rest_nano.fp16.tensorrt.engine"
    assert f"{engine}: " in said
    assert "looked at the engine itself, on the GPU here" in said
    assert "warning" not in said
    graph = json.loads(done("predict", workspace / "rest_nano.onnx", photo, "--json"))
    found = json.loads(done("predict", engine, photo, "--json"))
    best = [answer["images"][0]["predictions"][0] for answer in (graph, found)]
    assert best[0]["label"] == best[1]["label"]
    assert best[0]["probability"] == pytest.approx(best[1]["probability"], abs=5e-3)
    said = done("verify", engine, "--workspace", workspace)
    assert "on tensorrt/cuda:0 against PyTorch float64" in said
    assert "x448x" not in said, "no profile holds it"
    refused(run("verify", engine, "--sizes", "448"), 3, "nearest of its 1 profiles")

    said = done("refit", engine, "--checkpoint", TRAINED_WEIGHTS, "--gate-images", "22")
    assert "gate: passed on " in said
    assert "warning: these are the weights the engine had" in said
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.command == f"rest-deploy refit {engine} --checkpoint {TRAINED_WEIGHTS}"
    assert "predictions" in done("predict", engine, photo, "--json")
    missing = workspace / "none.safetensors"
    refused(run("refit", engine, "--checkpoint", missing), 3, str(missing))


def test_an_engine_of_unknown_origin(workspace: Path, gpu: SimulatedTensorRt, photo: Path) -> None:
    done("build-engine", "--fp16", "--workspace", workspace, *SMALL)
    engine = workspace / "rest_nano.fp16.tensorrt.engine"
    sidecar_path(engine).unlink()
    refused(run("predict", engine, photo), 3, "nothing says what it is", "--trust MODEL")
    export = workspace / "rest_nano.onnx"
    assert "photo.png" in done("predict", engine, photo, "--trust", export)
    sidecar_path(export).unlink()
    refused(run("predict", engine, photo, "--trust", export), 3, "has no sidecar")
    refused(run("predict", export, photo, "--trust", export), 3, "is no engine")


def test_no_tensorrt_of_that_flavour(
    workspace: Path, gpu: SimulatedTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of another machine."""
    done("build-engine", "--fp16", "--workspace", workspace, *SMALL)
    engine = workspace / "rest_nano.fp16.tensorrt.engine"
    monkeypatch.undo()
    refused(run("predict", engine, engine), 4, "tensorrt is not installed", "rest-deploy[tensorrt]")
    refused(run("refit", engine, "--checkpoint", TRAINED_WEIGHTS), 3, "not built to be refitted")


def test_a_gpu_without_the_package_for_its_memory(
    workspace: Path, gpu: SimulatedTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "installed", lambda name: name == "onnxruntime")
    said = done("build-engine", "--fp16", "--workspace", workspace, "--gate-images", "22")
    assert "backend: onnxruntime (not tensorrt: running its engines needs cuda-python" in said
