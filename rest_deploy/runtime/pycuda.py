"""CUDA through PyCUDA, for services that live on it already.

PyCUDA owns the context, the memory and the streams; events, copies between plain addresses and
graphs go to the driver itself, since PyCUDA takes no foreign stream and has no graphs. Everything
is in the device's primary context (as `pycuda.autoprimaryctx` has it), so that PyCUDA's own arrays,
torch and the CUDA runtime can work with the same memory; a context of `pycuda.autoinit` could not.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rest_deploy.cuda_driver import load_library
from rest_deploy.errors import DeviceError, DeviceMemoryError, require
from rest_deploy.runtime.cuda_python import DEVICE_TYPE, LESS_MEMORY, NOT_READY, failure

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING; PyCUDA passes it on."""

THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL."""

Handle = ctypes.c_void_p


class PyCuda:
    """See `runtime.cuda.Cuda`."""

    name = "pycuda"
    device_type = DEVICE_TYPE

    def __init__(self, ordinal: int = 0) -> None:
        require("pycuda.driver", "pycuda")
        try:
            from pycuda import driver

            self._library: Any = load_library()
        except (ImportError, OSError) as error:
            raise DeviceError(f"no NVIDIA driver: {error}", hint="rest-deploy doctor") from error
        self._cuda: Any = driver
        self.ordinal = ordinal
        self._held: dict[int, Any] = {}
        """PyCUDA's objects by the handle that stands for them here; they free with the object."""
        self._lock = threading.Lock()
        with self._translated("cuInit"):
            driver.init()
        with self._translated("cuDevicePrimaryCtxRetain"):
            self._context = driver.Device(ordinal).retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._translated("cuCtxPushCurrent"):
            self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def allocate(self, size: int) -> int:
        with self._translated("cuMemAlloc"):
            memory = self._cuda.mem_alloc(size)
        return self._hold(int(memory), memory)

    def free(self, pointer: int) -> None:
        with self._translated("cuMemFree"):
            self._drop(pointer).free()

    def allocate_pinned(self, size: int) -> int:
        with self._translated("cuMemHostAlloc"):
            memory = self._cuda.pagelocked_empty(size, "uint8")
        return self._hold(memory.ctypes.data, memory)

    def free_pinned(self, pointer: int) -> None:
        with self._translated("cuMemFreeHost"):
            self._drop(pointer).base.free()

    def memory(self) -> tuple[int, int]:
        with self._translated("cuMemGetInfo"):
            free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def create_stream(self) -> int:
        with self._translated("cuStreamCreate"):
            stream = self._cuda.Stream(NON_BLOCKING)
        return self._hold(int(stream.handle), stream)

    def destroy_stream(self, stream: int) -> None:
        self._drop(stream)

    def synchronize(self, stream: int) -> None:
        self._ask("cuStreamSynchronize", Handle(stream))

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        self._ask("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(device), Handle(host),
                  ctypes.c_size_t(size), Handle(stream))  # fmt: skip

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        self._ask("cuMemcpyDtoHAsync_v2", Handle(host), ctypes.c_uint64(device),
                  ctypes.c_size_t(size), Handle(stream))  # fmt: skip

    def create_event(self) -> int:
        return self._made("cuEventCreate", ctypes.c_uint(0))

    def destroy_event(self, event: int) -> None:
        self._ask("cuEventDestroy_v2", Handle(event))

    def record(self, event: int, stream: int) -> None:
        self._ask("cuEventRecord", Handle(event), Handle(stream))

    def wait(self, stream: int, event: int) -> None:
        self._ask("cuStreamWaitEvent", Handle(stream), Handle(event), ctypes.c_uint(0))

    def synchronize_event(self, event: int) -> None:
        self._ask("cuEventSynchronize", Handle(event))

    def happened(self, event: int) -> bool:
        return not self._ask("cuEventQuery", Handle(event), allowed=NOT_READY)

    def elapsed_ms(self, start: int, end: int) -> float:
        answer = ctypes.c_float()
        self._ask("cuEventElapsedTime", ctypes.byref(answer), Handle(start), Handle(end))
        return answer.value

    def begin_capture(self, stream: int) -> None:
        self._ask("cuStreamBeginCapture_v2", Handle(stream), ctypes.c_int(THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        recorded = Handle()
        self._ask("cuStreamEndCapture", Handle(stream), ctypes.byref(recorded))
        try:
            return self._made("cuGraphInstantiateWithFlags", recorded, ctypes.c_uint64(0))
        finally:
            self._ask("cuGraphDestroy", recorded)

    def launch(self, graph: int, stream: int) -> None:
        self._ask("cuGraphLaunch", Handle(graph), Handle(stream))

    def destroy_graph(self, graph: int) -> None:
        self._ask("cuGraphExecDestroy", Handle(graph))

    def _made(self, function: str, *arguments: Any) -> int:
        """Call a function that writes a handle to its first argument."""
        answer = Handle()
        self._ask(function, ctypes.byref(answer), *arguments)
        return int(answer.value or 0)

    def _ask(self, function: str, *arguments: Any, allowed: int = 0) -> int:
        """Call a function that answers a status: 0, or `allowed`; others are raised."""
        code = int(getattr(self._library, function)(*arguments))
        if code not in (0, allowed):
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(name))
            raise failure(function, code, (name.value or b"an unknown error").decode())
        return code

    @contextmanager
    def _translated(self, function: str) -> Iterator[None]:
        """PyCUDA's exceptions, which are its own and carry no code, as `DeviceError`."""
        try:
            yield
        except self._cuda.MemoryError as error:
            text = f"{function}: out of GPU memory ({error})"
            raise DeviceMemoryError(text, hint=LESS_MEMORY) from error
        except self._cuda.Error as error:
            raise DeviceError(f"{function}: {error}", hint="rest-deploy doctor") from error

    def _hold(self, handle: int, owner: Any) -> int:
        with self._lock:
            self._held[handle] = owner
        return handle

    def _drop(self, handle: int) -> Any:
        with self._lock:
            return self._held.pop(handle)
