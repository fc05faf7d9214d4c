"""What an engine carries to check itself where it arrives: images, their answers, how far from them
it may be, and where it was last seen to keep to that."""

from __future__ import annotations

from typing import Literal

from rest_deploy.machine import instruction_set
from rest_deploy.stored import Struct

Threads = Literal["one", "several"]
"""Of one call: several share sums out, and round them otherwise."""


class Site(Struct, frozen=True):
    """Where an engine runs: all of a machine that decides its kernels.

    cpu: the model; features: what the backend may use of it (`machine.features_for`). backend:
    runtime and part of a device, "openvino/cpu", "tensorrt/cuda"; version: of that runtime, exact.
    gpu: its compute capability, "90", driver: newest CUDA of its driver; both "" on a CPU.
    """

    cpu: str
    features: tuple[str, ...]
    backend: str
    version: str
    threads: Threads
    gpu: str = ""
    driver: str = ""

    def words(self) -> str:
        """ "AVX-512 with VNNI", or the GPU."""
        if self.gpu:
            return f"a GPU of compute capability {self.gpu}"
        return instruction_set(self.features)

    def runtime(self) -> str:
        """ "openvino 2026.4.1" """
        return f"{self.backend.partition('/')[0]} {self.version}"


class Expected(Struct, frozen=True):
    """Of one output. values: base64 of little-endian float32 (probes, channels), of a map the mean
    of each channel over its cells. bound: of the relative L2 error over all of them. built: that
    error where it was built, None where it could not be run there."""

    name: str
    channels: int
    values: str
    bound: float
    built: float | None = None


class SelfTest(Struct, frozen=True):
    """probes: PNG files in base64, of pixels as a card's preprocessing leaves them: they are
    normalized, or given as they are to a model that takes pixels, never resized. Each runs in a
    call of its own, repeated `batch` times where a profile asks for so many. reference: whose
    answers are expected."""

    probes: tuple[str, ...]
    expected: tuple[Expected, ...]
    reference: str
    batch: int = 1
