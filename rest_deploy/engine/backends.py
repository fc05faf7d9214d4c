"""The backends, best first: which one can build here, and why the better ones cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rest_deploy.contracts import Precision
from rest_deploy.engine import tensorrt
from rest_deploy.errors import InputError, MissingDependencyError, installed

BackendName = Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]

ALL: frozenset[Precision] = frozenset({"fp32", "fp16", "bf16", "int8", "fp8"})


def _nothing() -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """`precisions` it computes in, and `others` what it does with the rest; `why_not` tells why it
    cannot build here, None if it can; `why_not_by_itself` why "auto" does not take it although it
    could."""

    name: BackendName
    precisions: frozenset[Precision]
    why_not: Callable[[], str | None]
    why_not_by_itself: Callable[[], str | None] = _nothing
    others: str = ""


@dataclass(frozen=True)
class Choice:
    """The backend that was taken, and (name, reason) of the better ones that were not."""

    backend: BackendName
    passed_over: tuple[tuple[BackendName, str], ...]


def _tensorrt() -> str | None:
    return tensorrt.why_not("tensorrt") or _no_gpu()


def _rtx() -> str | None:
    return tensorrt.why_not("tensorrt-rtx")


def _no_cuda_package() -> str | None:
    if installed("cuda.bindings.runtime") or installed("pycuda.driver"):
        return None
    return "running its engines needs cuda-python, which is not installed: pip install cuda-python"


def _no_rtx_gpu() -> str | None:
    """TensorRT-RTX builds anywhere: by itself only where the engine runs."""
    from rest_deploy.cuda_driver import Driver

    known = tensorrt.known_sms("tensorrt-rtx")
    try:
        major, minor = Driver().gpu(0).compute_capability
    except MissingDependencyError:
        return "no GPU is here to run its engines; by name it builds them for elsewhere"
    if f"{major}{minor}" not in known:
        return (
            f"it does not run on this GPU (compute capability {major}{minor}, it knows "
            f"{', '.join(known)}); by name it builds for others"
        )
    return _no_cuda_package()


def _no_gpu() -> str | None:
    from rest_deploy.cuda_driver import Driver

    try:
        return None if Driver().count() else "it builds for the GPU at hand, and none is here"
    except MissingDependencyError as error:
        return f"it builds for the GPU at hand: {error.message}"


def _openvino() -> str | None:
    if installed("openvino"):
        return None
    return "the package is not installed: pip install 'rest-deploy[openvino]'"


def _onnxruntime() -> str | None:
    if installed("onnxruntime"):
        return None
    return "the package is not installed: pip install 'rest-deploy[onnxruntime]'"


OPENVINO_OTHERS = " on a CPU (FP16 it makes BF16 without a word, FP8 float32)"

BACKENDS: tuple[Backend, ...] = (
    Backend("tensorrt", ALL, _tensorrt, _no_cuda_package),
    Backend("tensorrt-rtx", ALL, _rtx, _no_rtx_gpu),
    # Before ONNX Runtime where the two are not timed on the model (verbs/trial.py).
    Backend("openvino", frozenset({"fp32", "bf16", "int8"}), _openvino, others=OPENVINO_OTHERS),
    # Its CPU provider has no BF16 kernels; FP16 and FP8 run, without a gain in speed.
    Backend("onnxruntime", frozenset({"fp32", "fp16", "int8", "fp8"}), _onnxruntime),
)

NAMES: tuple[str, ...] = tuple(backend.name for backend in BACKENDS)


def can_build(name: BackendName, precision: Precision) -> bool:
    """Whether that backend builds this precision here."""
    (found,) = (backend for backend in BACKENDS if backend.name == name)
    return precision in found.precisions and found.why_not() is None


def choose(
    wanted: str, precision: Precision, unfit: Mapping[BackendName, str] | None = None
) -> Choice:
    """`wanted`: a name, or "auto" for the best that builds this precision here. unfit: those that
    "auto" is not to take for this model, and why.

    Raises `MissingDependencyError` when a named backend cannot, or none can.
    """
    if wanted != "auto" and wanted not in NAMES:
        raise InputError(f"unknown backend {wanted!r}; there are auto, {', '.join(NAMES)}")
    passed_over: list[tuple[BackendName, str]] = []
    for backend in BACKENDS:
        if wanted not in ("auto", backend.name):
            continue
        reason = backend.why_not()
        if reason is None and precision not in backend.precisions:
            reason = f"it does not compute in {precision}{backend.others}"
        if reason is None and wanted == "auto":
            reason = (unfit or {}).get(backend.name) or backend.why_not_by_itself()
        if reason is None:
            return Choice(backend.name, tuple(passed_over))
        passed_over.append((backend.name, reason))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise MissingDependencyError(
        f"no backend here builds {precision}: {reasons}",
        hint=f"rest-deploy quantize --{precision} writes the ONNX file for another machine",
    )
