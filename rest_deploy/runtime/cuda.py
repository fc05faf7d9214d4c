"""GPU memory, streams, events and graphs: one small interface, two packages that provide it.

Both work in the device's primary context, the one that torch, CuPy and every user of the CUDA
runtime share; neither makes a context of its own. Pointers, streams, events and graphs are plain
integers, as TensorRT takes them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rest_deploy.errors import DeviceError, InputError, MissingDependencyError, installed

PROVIDERS = {"cuda-python": "cuda.bindings.runtime", "pycuda": "pycuda.driver"}
"""Name -> the module it needs, the preferred one first."""

ALIGNMENT = 256
"""Bytes that TensorRT wants an input's or output's address to be a multiple of."""


class Cuda(Protocol):
    """One GPU as one package sees it. Every method raises `DeviceError` when CUDA refuses.

    All but `current` must be called inside `with cuda.current()`.
    """

    name: str
    ordinal: int
    device_type: int
    """DLPack's: 2 for CUDA."""

    def current(self) -> AbstractContextManager[None]:
        """Make the primary context current on this thread, and what was there before after it."""

    def allocate(self, size: int) -> int:
        """`size` bytes of device memory, aligned to at least `ALIGNMENT`."""

    def free(self, pointer: int) -> None:
        """Waits for all work of the device, so nothing that still uses it loses it."""

    def allocate_pinned(self, size: int) -> int:
        """`size` bytes of page-locked host memory: copies from and to it are asynchronous."""

    def free_pinned(self, pointer: int) -> None: ...

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and of the whole device."""

    def create_stream(self) -> int:
        """Not ordered with the default stream, on which every enqueue waits for the device."""

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Wait for the stream; an error of its work is raised here."""

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """From pinned host memory, asynchronously."""

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """To pinned host memory, asynchronously."""

    def create_event(self) -> int:
        """With a time stamp."""

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, stream: int, event: int) -> None:
        """Later work of the stream waits for the event; the host does not."""

    def synchronize_event(self, event: int) -> None:
        """The host waits for the event."""

    def happened(self, event: int) -> bool:
        """Whether it has; nobody waits."""

    def elapsed_ms(self, start: int, end: int) -> float:
        """Between two events that have happened."""

    def begin_capture(self, stream: int) -> None:
        """Record this thread's work on the stream instead of doing it."""

    def end_capture(self, stream: int) -> int:
        """The recorded work, ready to be launched. Ends the capture also where it fails."""

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...


def open_cuda(provider: str | None = None, ordinal: int = 0) -> Cuda:
    """The GPU of that number through `provider`; None: cuda-python, where it is not installed
    PyCUDA.

    Raises `InputError` (no such provider), `MissingDependencyError`, `DeviceError` (no such GPU).
    """
    if provider is not None and provider not in PROVIDERS:
        raise InputError(f"unknown CUDA provider {provider!r}; there are {', '.join(PROVIDERS)}")
    wanted = [provider] if provider else list(PROVIDERS)
    found = next((name for name in wanted if installed(PROVIDERS[name])), None)
    if found == "cuda-python":
        from rest_deploy.runtime.cuda_python import CudaPython

        return CudaPython(ordinal)
    if found == "pycuda":
        from rest_deploy.runtime.pycuda import PyCuda

        return PyCuda(ordinal)
    raise MissingDependencyError(
        f"GPU memory needs the Python package {' or '.join(wanted)}, which is not installed",
        hint="pip install cuda-python" if provider != "pycuda" else "pip install pycuda",
    )


class DeviceBuffer:
    """Device memory that grows. `pointer` is 0 and `size` 0 before the first `reserve`."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.pointer = 0
        self.size = 0
        self._release: weakref.finalize[[Cuda, int], DeviceBuffer] | None = None

    def reserve(self, size: int) -> bool:
        """Hold at least `size` bytes; whether the memory moved. Its contents are lost then."""
        if size <= self.size:
            return False
        self.close()
        self.pointer = self._cuda.allocate(size)
        self.size = size
        self._release = weakref.finalize(self, _free, self._cuda, self.pointer)
        return True

    def close(self) -> None:
        if self._release is not None:
            self._release()
        self._release, self.pointer, self.size = None, 0, 0


class PinnedBuffer:
    """Page-locked host memory that grows, seen as arrays."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.pointer = 0
        self.size = 0
        self._release: weakref.finalize[[Cuda, int], PinnedBuffer] | None = None

    def reserve(self, size: int) -> None:
        """Hold at least `size` bytes; arrays that were handed out before are void."""
        if size <= self.size:
            return
        self.close()
        self.pointer = self._cuda.allocate_pinned(size)
        self.size = size
        self._release = weakref.finalize(self, _free_pinned, self._cuda, self.pointer)

    def array(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[np.generic]:
        """The memory from its beginning, as an array; it must be `reserve`d and stay so."""
        count = int(np.prod(shape))
        size = count * np.dtype(dtype).itemsize
        if size > self.size:
            raise DeviceError(f"{size} bytes asked of a pinned buffer of {self.size}")
        raw = (ctypes.c_uint8 * size).from_address(self.pointer)
        return np.frombuffer(memoryview(raw), dtype=np.dtype(dtype), count=count).reshape(shape)

    def close(self) -> None:
        if self._release is not None:
            self._release()
        self._release, self.pointer, self.size = None, 0, 0


def _free(cuda: Cuda, pointer: int) -> None:
    with released(cuda):
        cuda.free(pointer)


def _free_pinned(cuda: Cuda, pointer: int) -> None:
    with released(cuda):
        cuda.free_pinned(pointer)


@contextmanager
def released(cuda: Cuda) -> Iterator[None]:
    """For what gives resources back, from any thread: what CUDA refuses there is lost already (the
    process ends, or an earlier error, which has been raised, has taken the context with it)."""
    try:
        with cuda.current():
            yield
    except DeviceError:
        return
