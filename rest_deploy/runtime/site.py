"""Where an engine runs now: all of this machine that decides which kernels it gets."""

from __future__ import annotations

from rest_deploy import machine
from rest_deploy.cuda_driver import Driver
from rest_deploy.engine import onnxruntime_session, openvino, tensorrt
from rest_deploy.selftest import Site


def site(backend: str, threads: int | None = None) -> Site:
    """backend: as a runner calls itself, "openvino/cpu" or "tensorrt/cuda:0". threads: of one call,
    None for all cores.

    Raises `MissingDependencyError` for a runtime or a GPU that is gone.
    """
    runtime, _, place = backend.partition("/")
    part, _, ordinal = place.partition(":")
    gpu, driver = "", ""
    if part != "cpu":
        cuda = Driver()
        gpu = "".join(map(str, cuda.gpu(int(ordinal or 0)).compute_capability))
        driver = ".".join(map(str, cuda.cuda_version()))
    cpu = machine.cpu()
    return Site(
        cpu=cpu.name,
        features=machine.features_for(runtime, cpu),
        backend=f"{runtime}/{part}",
        version=_version(runtime),
        threads="one" if (threads or machine.cores()) == 1 else "several",
        gpu=gpu,
        driver=driver,
    )


def _version(runtime: str) -> str:
    if runtime == "openvino":
        return openvino.version()
    if runtime == "onnxruntime":
        return onnxruntime_session.version()
    return tensorrt.version("tensorrt-rtx" if runtime == "tensorrt-rtx" else "tensorrt")
