"""A session runs where it was asked to, or not at all. The refusals are real: no GPU is here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from rest_deploy.engine import onnxruntime_session, providers
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.onnxruntime_session import check_provider, open_session
from rest_deploy.engine.providers import DEFAULTS, PROVIDERS, ProviderOptions
from rest_deploy.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    OutputError,
    installed,
)

CPU = "CPUExecutionProvider"
without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA"
)


@without_cuda
@pytest.mark.parametrize(
    ("name", "ort_name"),
    [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")],
)
def test_a_provider_that_is_not_compiled_in(exported_nano: Path, name: str, ort_name: str) -> None:
    with pytest.raises(MissingDependencyError, match=f"has no {ort_name}; it has .*{CPU}") as found:
        OnnxRuntimeRunner(exported_nano, provider=name)
    assert found.value.hint == PROVIDERS[name].install
    assert "rest-deploy[onnxruntime-gpu]" in PROVIDERS[name].install
    with pytest.raises(MissingDependencyError, match=f"has no {ort_name}"):
        check_provider(name)


@pytest.mark.skipif(installed(providers.PLUGIN_MODULE), reason="the plugin is installed")
def test_a_plugin_that_is_not_installed(exported_nano: Path) -> None:
    with pytest.raises(MissingDependencyError, match="onnxruntime_ep_nv_tensorrt_rtx") as found:
        open_session(exported_nano, "nv-tensorrt-rtx", DEFAULTS)
    assert found.value.hint == PROVIDERS["nv-tensorrt-rtx"].install


def test_an_unknown_provider(exported_nano: Path) -> None:
    with pytest.raises(InputError, match="unknown provider 'rocm'"):
        OnnxRuntimeRunner(exported_nano, provider="rocm")


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnx_runtimes_own_fallback_is_refused(
    exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is real here: asked for CUDA it warns, and runs on the CPU."""
    fallen = ort.InferenceSession(str(exported_nano), providers=["CUDAExecutionProvider"])
    assert fallen.get_providers() == [CPU]
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    with pytest.raises(MissingDependencyError, match=f"was asked for, ONNX Runtime runs {CPU}"):
        OnnxRuntimeRunner(exported_nano, provider="cuda")


def test_a_gpu_is_looked_for_before_hours_of_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime_session, "Driver", lambda: SimpleNamespace(count=lambda: 0))
    with pytest.raises(MissingDependencyError, match="needs a GPU, none is here"):
        check_provider("cuda")
    monkeypatch.setattr(onnxruntime_session, "Driver", lambda: SimpleNamespace(count=lambda: 1))
    check_provider("cuda")


def test_what_the_loader_prints_stays_out_of_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublas"))
    monkeypatch.setattr(onnxruntime_session, "Driver", lambda: SimpleNamespace(count=lambda: 1))
    check_provider("cuda")
    assert capsys.readouterr() == ("", "Failed to load libcublas\n")


def test_no_fallback_in_the_middle_of_a_run(exported_nano: Path) -> None:
    """ONNX Runtime's would print, start again on the CPU and return."""
    assert open_session(exported_nano, "cpu", DEFAULTS)._enable_fallback is False


# --- a stand-in: the CPU's provider, which ONNX Runtime offers like a plugin's, renamed ---


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was registered as "nv-tensorrt-rtx"."""
    registered: list[str] = []
    plugin = SimpleNamespace(get_ep_name=lambda: "Nv", get_library_path=lambda: "/libnv.so")
    monkeypatch.setitem(sys.modules, "nv_plugin", plugin)
    monkeypatch.setattr(onnxruntime_session, "require", lambda *_: None)
    changed = replace(PROVIDERS["nv-tensorrt-rtx"], ort_name=CPU, plugin="nv_plugin")
    monkeypatch.setitem(PROVIDERS, "nv-tensorrt-rtx", changed)
    monkeypatch.setattr(
        ort,
        "register_execution_provider_library",
        lambda *words: registered.append(" ".join(words)),
    )
    onnxruntime_session._register.cache_clear()
    yield registered
    onnxruntime_session._register.cache_clear()


def test_a_plugin_is_registered_once(
    exported_nano: Path, tmp_path: Path, stand_in: list[str]
) -> None:
    options = ProviderOptions(cache=tmp_path / "cache" / "hash")
    for _ in range(2):
        runner = OnnxRuntimeRunner(exported_nano, provider="nv-tensorrt-rtx", options=options)
    assert stand_in == ["Nv /libnv.so"]
    assert runner.backend == "onnxruntime/nv-tensorrt-rtx"
    assert (tmp_path / "cache" / "hash").is_dir()
    logits = runner.infer({"image": np.zeros((1, 3, 64, 64), np.float32)})
    assert logits["logits"].shape == (1, 1000)


def test_a_plugin_that_cannot_be_loaded(
    exported_nano: Path, stand_in: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the message of the real one, version 0.5.0, on a machine without a driver."""

    def fail(*_: str) -> None:
        raise RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /site-packages/libnv.so with "
            "error: libcuda.so.1: cannot open shared object file: No such file or directory"
        )

    with monkeypatch.context() as patch:
        patch.setattr(ort, "register_execution_provider_library", fail)
        with pytest.raises(
            MissingDependencyError, match=r"plugin Nv: libcuda\.so\.1: cannot"
        ) as found:
            open_session(exported_nano, "nv-tensorrt-rtx", DEFAULTS)
        assert "install its driver" in str(found.value.hint)
    open_session(exported_nano, "nv-tensorrt-rtx", DEFAULTS)
    assert stand_in == ["Nv /libnv.so"], "a failure is not remembered"


@pytest.mark.usefixtures("stand_in")
def test_devices(exported_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="device 1 was asked for; CPUExecutionProvider has 1"):
        open_session(exported_nano, "nv-tensorrt-rtx", ProviderOptions(device=1))
    monkeypatch.setattr(ort, "get_ep_devices", list)
    with pytest.raises(MissingDependencyError, match="finds no GPU it runs on"):
        open_session(exported_nano, "nv-tensorrt-rtx", DEFAULTS)


@pytest.mark.usefixtures("stand_in")
def test_an_onnxruntime_without_plugins(
    exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ort, "register_execution_provider_library")
    with pytest.raises(MissingDependencyError, match=r"takes no plugins; .* needs 1\.24"):
        open_session(exported_nano, "nv-tensorrt-rtx", DEFAULTS)


# --- files and folders ---------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
def test_a_refused_file_leaves_no_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    options = ProviderOptions(cache=tmp_path / "cache" / "hash")
    with pytest.raises(ArtifactError, match=r"cannot load .* on CPUExecutionProvider"):
        open_session(tmp_path / "bad.onnx", "nv-tensorrt-rtx", options)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache" / "other").mkdir(parents=True)
    with pytest.raises(ArtifactError):
        open_session(tmp_path / "bad.onnx", "nv-tensorrt-rtx", options)
    assert (tmp_path / "cache" / "other").is_dir(), "of another file"


@pytest.mark.usefixtures("stand_in")
def test_a_cache_folder_that_cannot_be_made(exported_nano: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the cache folder") as found:
        open_session(
            exported_nano, "nv-tensorrt-rtx", ProviderOptions(cache=tmp_path / "file" / "hash")
        )
    assert "--provider-cache" in str(found.value.hint)


def test_missing_libraries_are_not_a_bad_file(
    exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of onnxruntime-gpu 1.31.1 without TensorRT."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("pybind_state.cc:729 Please install TensorRT libraries as mentioned")

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(MissingDependencyError, match="its libraries are not here") as found:
        open_session(exported_nano, "tensorrt", DEFAULTS)
    assert "LD_LIBRARY_PATH" in str(found.value.hint)


@pytest.mark.usefixtures("stand_in")
def test_a_run_that_a_provider_refuses(
    exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = OnnxRuntimeRunner(exported_nano, provider="nv-tensorrt-rtx")
    with pytest.raises(ArtifactError, match=r"rtx cannot run image \(1, 4, 64, 64\): ") as found:
        runner.infer({"image": np.zeros((1, 4, 64, 64), np.float32)})
    assert "profiles" in str(found.value.hint)
