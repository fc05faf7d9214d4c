"""The NVIDIA GPUs of this machine, as the driver itself reports them; needs no Python package."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from rest_deploy.contracts import Struct
from rest_deploy.errors import MissingDependencyError

MEND = "on a machine with an NVIDIA GPU install its driver; in Docker: --gpus all"

ERRORS = {
    2: "out of GPU memory",
    3: "the driver could not be initialized",
    34: "this is the CUDA toolkit's stub library, not the driver's",
    100: "no GPU is visible (none here, or CUDA_VISIBLE_DEVICES or the container hides it)",
    802: "the GPUs are not set up yet (on NVSwitch machines nvidia-fabricmanager does that)",
    803: "driver library and kernel module have different versions; reboot after a driver update",
    804: "the CUDA forward-compatibility library does not support this GPU",
    999: "unknown error; often the kernel module is not loaded",
}
"""Values of CUresult (cuda.h) that keep a machine from using its GPU."""

COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class Gpu(Struct, frozen=True):
    """One GPU. `memory` in bytes; compute capability as (major, minor), e.g. (8, 9)."""

    name: str
    memory: int
    compute_capability: tuple[int, int]


class Driver:
    """The loaded and initialized driver. Every call raises `MissingDependencyError` on refusal."""

    def __init__(self) -> None:
        try:
            self._library = load_library()
        except OSError as error:
            raise MissingDependencyError(f"no NVIDIA driver: {error}", hint=MEND) from error
        self._check("cuInit", self._library.cuInit(0))

    def cuda_version(self) -> tuple[int, int]:
        """The newest CUDA whose programs this driver runs, as (major, minor)."""
        version = self._ask("cuDriverGetVersion")
        return version // 1000, version % 1000 // 10

    def count(self) -> int:
        return self._ask("cuDeviceGetCount")

    def gpu(self, ordinal: int) -> Gpu:
        """The GPU of that number, in the order CUDA counts them (not nvidia-smi's)."""
        device = self._ask("cuDeviceGet", ordinal)
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        library = self._library
        self._check("cuDeviceGetName", library.cuDeviceGetName(name, len(name), device))
        self._check("cuDeviceTotalMem", library.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
        major, minor = (
            self._ask("cuDeviceGetAttribute", key, device) for key in COMPUTE_CAPABILITY
        )
        return Gpu(
            name=name.value.decode(errors="replace"),
            memory=memory.value,
            compute_capability=(major, minor),
        )

    def _ask(self, function: str, *arguments: int) -> int:
        """Call a function that writes one int to its first argument."""
        answer = ctypes.c_int()
        self._check(function, getattr(self._library, function)(ctypes.byref(answer), *arguments))
        return answer.value

    def _check(self, function: str, code: int) -> None:
        if code:
            meaning = ERRORS.get(code, "see CUresult in cuda.h")
            raise MissingDependencyError(f"{function} answers {code}: {meaning}", hint=MEND)


def load_library() -> Any:
    """The driver's library as ctypes sees it. Raises `OSError` when it is not there."""
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
