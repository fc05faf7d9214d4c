"""Where an engine runs now: all of this machine that decides which kernels it gets."""

from __future__ import annotations

from rest_deploy import machine
from rest_deploy.cuda_driver import Driver
from rest_deploy.engine import onnxruntime_session, openvino, tensorrt
from rest_deploy.runtime import loading
from rest_deploy.selftest import Site


def site(backend: str, threads: int | None = None) -> Site:
    """backend: as a runner calls itself, "openvino/cpu" or "tensorrt/cuda:0". threads: of one call,
    None for all cores.

    Raises `MissingDependencyError` for a runtime or a GPU that is gone.
    """
    runtime, _, place = backend.partition("/")
    part, _, ordinal = place.partition(":")
    version, gpu, cuda = _device(runtime, part, int(ordinal or 0))
    cpu = machine.cpu()
    return Site(
        cpu=cpu.name,
        features=machine.features_for(runtime, cpu),
        backend=f"{runtime}/{part}",
        version=version,
        threads="one" if (threads or machine.cores()) == 1 else "several",
        gpu=gpu,
        driver=".".join(map(str, cuda)),
    )


def _device(runtime: str, part: str, ordinal: int) -> tuple[str, str, tuple[int, ...]]:
    """Version of the runtime; compute capability of the GPU and newest CUDA of its driver, "" and
    () for a CPU."""
    if runtime in tensorrt.MODULES:
        here = loading.examine(ordinal)
        return here.versions[runtime], here.sm, here.cuda
    version = openvino.version() if runtime == "openvino" else onnxruntime_session.version()
    if part == "cpu":
        return version, "", ()
    driver = Driver()
    sm = "".join(map(str, driver.gpu(ordinal).compute_capability))
    return version, sm, driver.cuda_version()
