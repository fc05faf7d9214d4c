"""Which backend opens a .onnx file, and what is said where it cannot."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from rest_deploy.artifact import Sidecar, read_sidecar
from rest_deploy.contracts import Build
from rest_deploy.errors import InputError, MissingDependencyError
from rest_deploy.runtime import backend
from rest_deploy.runtime.backend import backend_for, inference_precision

Here = Callable[..., None]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Installed packages."""

    def make(*packages: str) -> None:
        monkeypatch.setattr(backend, "installed", lambda name: name in packages)

    make("onnxruntime", "openvino")
    return make


def build(name: str, precision: str = "int8", rest: str = "fp32") -> Build:
    return Build(
        precision=precision,  # type: ignore[arg-type]  # one of the precisions
        backend=name,
        io_type="float32",
        obtained={},
        source_sha256="",
        rest=rest,
    )


@pytest.fixture(scope="session")
def export(exported_nano: object) -> Sidecar:
    from pathlib import Path

    assert isinstance(exported_nano, Path)
    found = read_sidecar(exported_nano)
    assert found is not None
    return found


def built_for(export: Sidecar, name: str) -> Sidecar:
    return msgspec.structs.replace(export, build=build(name))


def test_the_one_it_was_built_for(here: Here, export: Sidecar) -> None:
    assert backend_for(None, None, None) == "onnxruntime"
    assert backend_for(export, None, None) == "onnxruntime"
    assert backend_for(built_for(export, "onnx"), None, None) == "onnxruntime"
    assert backend_for(built_for(export, "onnxruntime"), None, None) == "onnxruntime"
    assert backend_for(built_for(export, "openvino"), None, None) == "openvino"


def test_the_one_asked_for(here: Here, export: Sidecar) -> None:
    assert backend_for(built_for(export, "openvino"), "onnxruntime", None) == "onnxruntime"
    assert backend_for(built_for(export, "onnxruntime"), "openvino", None) == "openvino"
    assert backend_for(built_for(export, "openvino"), None, "cpu") == "onnxruntime"
    with pytest.raises(InputError, match="unknown backend 'tensorrt' for a"):
        backend_for(export, "tensorrt", None)
    with pytest.raises(InputError, match="provider 'cuda' is ONNX Runtime's"):
        backend_for(export, "openvino", "cuda")


def test_not_here(here: Here, export: Sidecar) -> None:
    """No other backend is taken in its place; the message names it."""
    here("onnxruntime")
    with pytest.raises(MissingDependencyError, match="the file was built for it") as caught:
        backend_for(built_for(export, "openvino"), None, None)
    assert caught.value.hint == (
        "pip install 'rest-deploy[openvino]', or --backend onnxruntime, which runs the file too"
    )
    with pytest.raises(MissingDependencyError, match=r"'openvino', which is not installed \("):
        backend_for(export, "openvino", None)
    here("openvino")
    with pytest.raises(MissingDependencyError, match="'onnxruntime', which is not") as caught:
        backend_for(export, None, None)
    assert "or --backend openvino" in (caught.value.hint or "")
    here()
    with pytest.raises(MissingDependencyError) as caught:
        backend_for(export, None, None)
    assert caught.value.hint == "pip install 'rest-deploy[onnxruntime]'"


def test_precision() -> None:
    assert inference_precision(None) == "f32"
    assert inference_precision(build("openvino")) == "f32"
    assert inference_precision(build("openvino", "bf16")) == "bf16"
    assert inference_precision(build("openvino", rest="bf16")) == "bf16"
    assert inference_precision(build("onnx", "bf16")) == "f32"  # types in the file, not the session
