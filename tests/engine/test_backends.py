"""Which backend `auto` takes, on machines made up here, and what it says of the others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rest_deploy import cuda_driver
from rest_deploy.engine import backends, tensorrt
from rest_deploy.engine.backends import choose
from rest_deploy.errors import InputError, MissingDependencyError

Machine = Callable[..., None]
KNOWN = ("75", "80", "86", "89", "120")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Installed packages, and the compute capability of its GPU if it has one."""

    def make(*packages: str, gpu: tuple[int, int] | None = None) -> None:
        class Driver:
            def __init__(self) -> None:
                if gpu is None:
                    raise MissingDependencyError("no NVIDIA driver: libcuda.so.1")

            def count(self) -> int:
                return 1

            def gpu(self, _: int) -> Any:
                return SimpleNamespace(compute_capability=gpu)

        monkeypatch.setattr(cuda_driver, "Driver", Driver)
        monkeypatch.setattr(backends, "installed", lambda name: name in packages)
        monkeypatch.setattr(tensorrt, "installed", lambda name: name in packages)
        monkeypatch.setattr(tensorrt, "known_sms", lambda _: KNOWN)

    return make


RTX = ("tensorrt_rtx", "onnxruntime", "cuda.bindings.runtime")


def reasons(precision: str = "int8") -> tuple[str, dict[str, str]]:
    found = choose("auto", precision)  # type: ignore[arg-type]  # one of the precisions
    return found.backend, dict(found.passed_over)


def test_a_laptop(machine: Machine) -> None:
    machine("onnxruntime")
    taken, others = reasons()
    assert taken == "onnxruntime"
    assert others["tensorrt"] == "the package is not installed: pip install 'rest-deploy[tensorrt]'"
    assert "rest-deploy[tensorrt-rtx]" in others["tensorrt-rtx"]


def test_a_server(machine: Machine) -> None:
    machine("tensorrt", "cuda.bindings.runtime", "onnxruntime", gpu=(9, 0))
    assert reasons() == ("tensorrt", {})


def test_a_server_with_pycuda(machine: Machine) -> None:
    machine("tensorrt", "pycuda.driver", gpu=(9, 0))
    assert reasons("bf16") == ("tensorrt", {})


def test_a_server_that_could_not_run_its_engines(machine: Machine) -> None:
    machine("tensorrt", "onnxruntime", gpu=(9, 0))
    taken, others = reasons()
    assert taken == "onnxruntime"
    assert "pip install cuda-python" in others["tensorrt"]


def test_a_desktop(machine: Machine) -> None:
    machine(*RTX, gpu=(8, 9))
    assert reasons()[0] == "tensorrt-rtx"


@pytest.mark.parametrize(
    ("gpu", "words"),
    [(None, "no GPU is here to run its engines"), ((9, 0), "does not run on this GPU")],
)
def test_rtx_that_would_not_run_here(
    machine: Machine, gpu: tuple[int, int] | None, words: str
) -> None:
    """By name it builds all the same."""
    machine(*RTX, gpu=gpu)
    taken, others = reasons()
    assert taken == "onnxruntime"
    assert words in others["tensorrt-rtx"]
    assert choose("tensorrt-rtx", "int8").backend == "tensorrt-rtx"


def test_tensorrt_by_name_without_a_gpu(machine: Machine) -> None:
    machine("tensorrt", "cuda.bindings.runtime", "onnxruntime")
    with pytest.raises(MissingDependencyError, match="it builds for the GPU at hand: no NVIDIA"):
        choose("tensorrt", "fp16")


def test_nothing_computes_in_it(machine: Machine) -> None:
    machine("onnxruntime")
    with pytest.raises(MissingDependencyError, match="does not compute in bf16") as caught:
        choose("auto", "bf16")
    assert "quantize --bf16" in (caught.value.hint or "")


def test_an_unknown_name(machine: Machine) -> None:
    with pytest.raises(InputError, match="unknown backend 'tpu'; there are auto, tensorrt"):
        choose("tpu", "int8")


def test_a_model_that_a_backend_does_not_fit(machine: Machine) -> None:
    """For `auto` only: who asks for it by name gets it, and the gate's word on it."""
    machine("openvino", "onnxruntime")
    unfit: dict[Any, str] = {"openvino": "loses untrained weights"}
    found = choose("auto", "int8", unfit)
    assert found.backend == "onnxruntime"
    assert dict(found.passed_over)["openvino"] == "loses untrained weights"
    assert choose("openvino", "int8", unfit).backend == "openvino"
