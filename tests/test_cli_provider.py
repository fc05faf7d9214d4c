"""`--provider` as a user meets it. The refusals are real; builds go to a stand-in, which is the
CPU's provider under another's name: no GPU is here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from rest_deploy.artifact import Sidecar, read_sidecar
from rest_deploy.contracts import Build, ProviderFit
from rest_deploy.engine.placement import Placement
from rest_deploy.engine.providers import PROVIDERS
from rest_deploy.runtime import site
from rest_deploy.verbs import provider
from tests.test_cli import done, refused, run, untouched

CPU = "CPUExecutionProvider"
FEW = ("--limit", "24", "--gate-images", "22")
ORT = ("--backend", "onnxruntime")


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    """A folder with a good export of a trained model."""
    folder = tmp_path / "workspace"
    shutil.copytree(trained_nano.parent, folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the providers are the CPU's, beside a GPU that is not asked to compute."""
    gpu = SimpleNamespace(compute_capability=(9, 0))
    driver = SimpleNamespace(gpu=lambda _ordinal: gpu, cuda_version=lambda: (13, 0))
    monkeypatch.setattr(site, "Driver", lambda: driver)
    for name in ("cuda", "tensorrt"):
        monkeypatch.setitem(PROVIDERS, name, replace(PROVIDERS[name], ort_name=CPU))
    monkeypatch.setattr(provider, "check_provider", lambda _name: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


def built(path: Path) -> tuple[Sidecar, Build, ProviderFit]:
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.through is not None
    return sidecar, sidecar.build, sidecar.build.through


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is here"
)
def test_no_gpu_here(workspace: Path, photo: Path) -> None:
    """Refused before anything is calibrated, with the command that mends it."""
    with untouched(workspace):
        refused(
            run("build-engine", "--fp16", *ORT, "--provider", "cuda", "--workspace", workspace), 4,
            "has no CUDAExecutionProvider", "rest-deploy[onnxruntime-gpu]",
        )  # fmt: skip
        refused(
            run("build-engine", "--int8", *ORT, "--provider", "nv-tensorrt-rtx", "--workspace",
                workspace), 4, "onnxruntime_ep_nv_tensorrt_rtx", "rest-deploy[onnxruntime-rtx]",
        )  # fmt: skip
        model = workspace / "rest_nano.onnx"
        refused(run("predict", model, photo, "--provider", "cuda"), 4, "has no CUDA")
        refused(run("verify", model, "--provider", "tensorrt"), 4, "has no Tensorrt")


@pytest.mark.parametrize("backend", [(), ("--backend", "tensorrt-rtx"),
                                     ("--backend", "tensorrt-rtx", "--dry-run")])  # fmt: skip
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_another_backend(workspace: Path, backend: tuple[str, ...], name: str) -> None:
    with untouched(workspace):
        refused(
            run("build-engine", *backend, "--provider", name, "--workspace", workspace), 3,
            "--provider goes with --backend onnxruntime, not with",
            f"--backend onnxruntime --provider {name}",
        )  # fmt: skip


def test_other_refusals(workspace: Path) -> None:
    with untouched(workspace):
        for words, message in (
            (("--provider", "cuda", "--int8"), "cuda does not compute in int8"),
            (("--provider", "cuda", "--fp16", "--embed-context"), "providers that compile"),
            (("--provider-cache", "c"), "--provider-cache is for providers that compile; cpu"),
            (("--provider", "tensorrt", "--fp16", "--dry-run"), "--dry-run goes with TensorRT"),
        ):
            refused(run("build-engine", *ORT, *words, "--workspace", workspace), 3, message)
        result = run("build-engine", *ORT, "--provider", "rocm", "--workspace", workspace)
        assert result.exit_code == 2
        assert "'rocm' is not one of 'cpu', 'cuda', 'tensorrt'" in result.stderr


def test_the_cpu_by_name_is_the_cpu(workspace: Path) -> None:
    said = done("build-engine", "--int8", *ORT, "--provider", "cpu", "--workspace", workspace, *FEW)
    engine = workspace / "rest_nano.int8.onnxruntime.onnx"
    assert str(engine) in said
    assert "backend: onnxruntime\n" in said
    assert "has no integer kernels here, so float weights stay" in said
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.build is not None
    assert (sidecar.build.provider, sidecar.build.through) == ("", None)
    assert "--backend onnxruntime" in sidecar.command
    assert sidecar.command.endswith("--provider cpu")


@pytest.mark.usefixtures("stand_in")
def test_a_build_for_cuda(workspace: Path, photo: Path) -> None:
    """Its own name, proof, gate and warnings; opened there again unless told otherwise."""
    said = done("build-engine", "--fp16", *ORT, "--provider", "cuda", "--workspace", workspace,
                *FEW)  # fmt: skip
    engine = workspace / "rest_nano.fp16.onnxruntime-cuda.onnx"
    assert str(engine) in said
    assert "backend: onnxruntime/cuda" in said
    assert "on a CPU" not in said
    assert "warning" not in said
    sidecar, build, fit = built(engine)
    assert (build.backend, build.provider) == ("onnxruntime", "cuda")
    assert build.gated == "the file, on onnxruntime/cuda"
    assert fit.nodes[CPU] > 200
    assert (fit.version, fit.profiles) == (onnxruntime.__version__, ())
    assert build.obtained["mlp"] == {"fp16": 10}
    assert sidecar.command.endswith("--provider cuda")
    shown = done("inspect", engine)
    assert "fp16 for onnxruntime/cuda, matrix layers: " in shown
    assert f"ran on: onnxruntime {fit.version}, nodes: " in shown
    assert "(of the file, on onnxruntime/cuda)" in shown
    words = ("--sizes", "64", "--batches", "1")
    assert "on onnxruntime/cuda against" in done("verify", engine, *words)
    assert "on onnxruntime/cpu against" in done("verify", engine, *words, "--provider", "cpu")
    assert len(json.loads(done("predict", engine, photo, "--json"))["images"]) == 1
    kept = {path.name.partition("-")[0] for path in workspace.glob("*.cache/*")}
    assert kept == {"selftest"}, "nothing that was compiled"


@pytest.mark.usefixtures("stand_in")
def test_a_build_for_tensorrt(workspace: Path, tmp_path: Path) -> None:
    """INT8 with FP16 around it, signed and with every layer the recipe quantizes; cached."""
    said = done("build-engine", "--int8", *ORT, "--provider", "tensorrt", "--provider-cache",
                tmp_path / "cache", "--max-shapes", "8x3x224x224", "--workspace", workspace,
                *FEW)  # fmt: skip
    assert "onnxruntime/tensorrt ran every matrix layer; which type" in said
    assert "no integer kernel" not in said
    engine = workspace / "rest_nano.int8.onnxruntime-tensorrt.onnx"
    sidecar, build, fit = built(engine)
    assert build.rest == "fp16"
    assert build.float_places == ()
    assert "unsign_activations" not in sidecar.passes
    assert build.obtained["stem"] == {"int8 asked": 3}
    assert build.obtained["sr"] == {"fp16 asked": 4}
    assert fit.profiles[0].maximum == (8, 3, 224, 224)
    assert fit.cache == str(tmp_path / "cache")
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()] == [
        sidecar.sha256[:16]
    ]
    assert sidecar.command.endswith(
        f"--max-shapes 8x3x224x224 --provider tensorrt --provider-cache {tmp_path / 'cache'}"
    )
    assert "profile 0: 1x3x32x32 to 8x3x224x224" in done("inspect", engine)


@pytest.mark.usefixtures("stand_in")
def test_a_layer_elsewhere_publishes_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Placement(CPU, {CPU: 200, "Other": 1}, ("stage1.0:sr (Conv on Other)",))
    monkeypatch.setattr(provider, "run_once", lambda *_: bad)
    with untouched(workspace):
        refused(
            run("build-engine", "--fp16", *ORT, "--provider", "cuda", "--workspace", workspace,
                *FEW), 1, "left 1 matrix layers of rest_nano.fp16.onnxruntime-cuda.onnx",
            "stage1.0:sr (Conv on Other)", "nothing was written",
        )  # fmt: skip
