"""Which backend a model file runs on here, and how OpenVINO opens it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from rest_deploy.artifact import Sidecar
from rest_deploy.contracts import Build, HostBackend, Runner
from rest_deploy.engine.compile_cache import CompileCache
from rest_deploy.engine.openvino import Inference, OpenVinoRunner, cache_key
from rest_deploy.errors import InputError, MissingDependencyError, installed
from rest_deploy.runtime.provider import default_cache
from rest_deploy.runtime.specialize import DEFAULT_LIMITS, ShapeLimits, SpecializingRunner

NAMES: tuple[HostBackend, ...] = get_args(HostBackend)


def backend_for(sidecar: Sidecar | None, wanted: str | None, provider: str | None) -> HostBackend:
    """wanted: a name of `NAMES`, or None for the one the file was built for, else ONNX Runtime.
    provider: of ONNX Runtime; who names one means ONNX Runtime.

    Raises `InputError` for other names, `MissingDependencyError` when it is not installed: another
    one is not taken without being asked for.
    """
    if wanted is not None and wanted not in NAMES:
        raise InputError(f"unknown backend {wanted!r} for a .onnx file; there are {NAMES}")
    if wanted == "openvino" and provider is not None:
        raise InputError(
            f"provider {provider!r} is ONNX Runtime's; OpenVINO has none",
            hint="--backend onnxruntime, or no --provider",
        )
    build = sidecar.build if sidecar else None
    built_for = "openvino" if build is not None and build.backend == "openvino" else "onnxruntime"
    name: HostBackend = next(
        found for found in NAMES if found == (wanted or ("onnxruntime" if provider else built_for))
    )
    if not installed(name):
        others = [other for other in NAMES if other != name and installed(other)]
        also = "".join(f", or --backend {other}, which runs the file too" for other in others)
        why = ": the file was built for it" if wanted is None and name == "openvino" else ""
        raise MissingDependencyError(
            f"this needs the Python package {name!r}, which is not installed{why}",
            hint=f"pip install 'rest-deploy[{name}]'{also}",
        )
    return name


def inference_precision(build: Build | None) -> Inference:
    """What float layers of an engine for OpenVINO compute in."""
    bf16 = build is not None and build.backend == "openvino" and "bf16" in (
        build.precision, build.rest
    )  # fmt: skip
    return "bf16" if bf16 else "f32"


def open_openvino(
    path: Path, sidecar: Sidecar | None, threads: int | None, limits: ShapeLimits | None
) -> Runner:
    """limits: of the compilations for single shapes, None for the usual ones.

    What was built for OpenVINO keeps its compiled form beside the file. Raises what
    `OpenVinoRunner` does.
    """
    build = sidecar.build if sidecar else None
    precision, cache = inference_precision(build), None
    if sidecar is not None and build is not None and build.backend == "openvino":
        of_file = sidecar.sha256 + sidecar.data_sha256
        cache = CompileCache(default_cache(path), cache_key(of_file, threads, precision))
    runner = OpenVinoRunner(path, threads=threads, precision=precision, cache=cache)
    limits = limits or DEFAULT_LIMITS
    return SpecializingRunner(runner, runner.specialized, limits) if limits.most else runner
