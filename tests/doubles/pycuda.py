"""`pycuda.driver` and the driver's library over a simulated device: what PyCUDA demands of its
callers (a pushed context, its own stream objects), and what each call of the driver takes."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from rest_deploy.errors import DeviceError
from tests.doubles.cuda import SimulatedCuda


class DriverError(Exception):
    """pycuda.driver.Error, which is no RuntimeError."""


class OutOfMemoryError(DriverError):
    """pycuda.driver.MemoryError."""


class SimulatedPyCuda:
    """The module."""

    Error = DriverError
    MemoryError = OutOfMemoryError

    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda = cuda
        self.ready = False
        self.pushed: list[AbstractContextManager[None]] = []
        module = self

        class Context:
            def push(self) -> None:
                module.pushed.append(cuda.current())
                module.pushed[-1].__enter__()

            @staticmethod
            def pop() -> None:
                module.pushed.pop().__exit__(None, None, None)

        class Device:
            def __init__(self, ordinal: int) -> None:
                if not module.ready:
                    raise DriverError("cuDeviceGet failed: initialization error")
                if ordinal:
                    raise DriverError("cuDeviceGet failed: invalid device ordinal")

            def retain_primary_context(self) -> Context:
                return Context()

        class Stream:
            def __init__(self, flags: int) -> None:
                assert flags == 1, "ordered with the default stream"
                self.handle = cuda.create_stream()

            def __del__(self) -> None:
                cuda.destroy_stream(self.handle)

        self.Context, self.Device, self.Stream = Context, Device, Stream

    def init(self) -> None:
        self.ready = True

    def mem_alloc(self, size: int) -> Allocation:
        try:
            return Allocation(self.cuda, self.cuda.allocate(size))
        except DeviceError as error:
            raise OutOfMemoryError(f"cuMemAlloc failed: {error}") from error

    def pagelocked_empty(self, size: int, dtype: str) -> Any:
        pointer = self.cuda.allocate_pinned(size)
        raw = (ctypes.c_uint8 * size).from_address(pointer)
        found = np.frombuffer(memoryview(raw), dtype).view(PagelockedArray)
        found.owner = HostAllocation(self.cuda, pointer)
        return found

    def mem_get_info(self) -> tuple[int, int]:
        return self.cuda.memory()


class PagelockedArray(np.ndarray):
    """Whose base is what frees it, as PyCUDA's are."""

    owner: HostAllocation

    @property
    def base(self) -> Any:
        return self.owner


class HostAllocation:
    def __init__(self, cuda: SimulatedCuda, pointer: int) -> None:
        self._cuda, self._pointer = cuda, pointer

    def free(self) -> None:
        self._cuda.free_pinned(self._pointer)


class Allocation:
    def __init__(self, cuda: SimulatedCuda, pointer: int) -> None:
        self._cuda, self._pointer = cuda, pointer

    def __int__(self) -> int:
        return self._pointer

    def free(self) -> None:
        self._cuda.free(self._pointer)


class SimulatedLibrary:
    """libcuda, as far as the provider calls it. Arguments must be of the width C has them."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda

    def cuStreamSynchronize(self, stream: Any) -> int:
        return self._answer(lambda: self._cuda.synchronize(_handle(stream)))

    def cuMemcpyHtoDAsync_v2(self, device: Any, host: Any, size: Any, stream: Any) -> int:
        assert isinstance(size, ctypes.c_size_t)
        self._cuda.copy_in(_address(device), _handle(host), size.value, _handle(stream))
        return 0

    def cuMemcpyDtoHAsync_v2(self, host: Any, device: Any, size: Any, stream: Any) -> int:
        assert isinstance(size, ctypes.c_size_t)
        self._cuda.copy_out(_handle(host), _address(device), size.value, _handle(stream))
        return 0

    def cuEventCreate(self, answer: Any, flags: Any) -> int:
        assert (type(flags), flags.value) == (ctypes.c_uint, 0)
        answer._obj.value = self._cuda.create_event()
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:
        self._cuda.destroy_event(_handle(event))
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        self._cuda.record(_handle(event), _handle(stream))
        return 0

    def cuEventSynchronize(self, event: Any) -> int:
        self._cuda.synchronize_event(_handle(event))
        return 0

    def cuEventQuery(self, event: Any) -> int:
        return 0 if self._cuda.happened(_handle(event)) else 600

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: Any) -> int:
        assert flags.value == 0
        self._cuda.wait(_handle(stream), _handle(event))
        return 0

    def cuEventElapsedTime(self, answer: Any, start: Any, end: Any) -> int:
        assert type(answer._obj) is ctypes.c_float
        answer._obj.value = self._cuda.elapsed_ms(_handle(start), _handle(end))
        return 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:
        assert mode.value == 1, "other threads' allocations would void the capture"
        self._cuda.begin_capture(_handle(stream))
        return 0

    def cuStreamEndCapture(self, stream: Any, answer: Any) -> int:
        answer._obj.value = self._cuda.end_capture(_handle(stream))
        return 0

    def cuGraphInstantiateWithFlags(self, answer: Any, graph: Any, flags: Any) -> int:
        assert (type(flags), flags.value) == (ctypes.c_uint64, 0)
        answer._obj.value = _handle(graph)  # one object for both here
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        assert _handle(graph)
        return 0

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        self._cuda.launch(_handle(graph), _handle(stream))
        return 0

    def cuGraphExecDestroy(self, graph: Any) -> int:
        self._cuda.destroy_graph(_handle(graph))
        return 0

    def cuGetErrorName(self, code: Any, answer: Any) -> int:
        answer._obj.value = b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        assert code.value == 900
        return 0

    def _answer(self, work: Any) -> int:
        try:
            work()
        except DeviceError:
            return 900
        return 0


def _handle(value: Any) -> int:
    assert type(value) is ctypes.c_void_p
    assert value.value
    return int(value.value)


def _address(value: Any) -> int:
    assert type(value) is ctypes.c_uint64
    return int(value.value)
