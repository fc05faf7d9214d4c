"""A CUDA device in host memory, strict and lazy, for tests on machines without a GPU.

Work on a stream is done when somebody waits for it and not before: a missing synchronization shows
as stale data. Memory is poisoned when it is allocated, pointers are checked when they are used, not
when they are passed, and everything outside `current()` is refused. It proves the logic above it,
not the providers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rest_deploy.errors import DeviceError, DeviceMemoryError
from rest_deploy.runtime.cuda import ALIGNMENT

POISON = 0xA5
Work = Callable[[], None]


class _Stream:
    def __init__(self) -> None:
        self.work: list[Work] = []
        self.done = 0
        self.recording: list[Work] | None = None
        self.recorder = 0


class SimulatedCuda:
    """See `rest_deploy.runtime.cuda.Cuda`. memory: bytes of the device."""

    name = "simulated"
    device_type = 1  # the CPU's: other libraries can look at the memory

    def __init__(self, memory: int = 1 << 32, ordinal: int = 0) -> None:
        self.ordinal = ordinal
        self._total = memory
        self._lock = threading.RLock()
        self._depth = threading.local()
        self._device: dict[int, ctypes.Array[ctypes.c_uint8]] = {}
        self._pinned: dict[int, ctypes.Array[ctypes.c_uint8]] = {}
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, tuple[_Stream, int]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._freed: list[object] = []
        """Kept, so that no address comes twice and every use after a free is found."""
        self._next = 0x1000
        self.launches = 0
        self.copied_bytes = 0
        self.refuse_capture = False

    @contextmanager
    def current(self) -> Iterator[None]:
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1

    def allocate(self, size: int) -> int:
        self._must_be_current()
        assert size > 0
        with self._lock:
            self._not_while_capturing("cudaMalloc")
            if size > self.memory()[0]:
                raise DeviceMemoryError(f"cudaMalloc answers 2: out of GPU memory ({size} bytes)")
            return _allocate(self._device, size)

    def free(self, pointer: int) -> None:
        self._must_be_current()
        with self._lock:
            for stream in self._streams.values():
                self._drain(stream)
            self._freed.append(self._device.pop(pointer))

    def allocate_pinned(self, size: int) -> int:
        self._must_be_current()
        with self._lock:
            return _allocate(self._pinned, size)

    def free_pinned(self, pointer: int) -> None:
        self._must_be_current()
        with self._lock:
            del self._pinned[pointer]

    def memory(self) -> tuple[int, int]:
        used = sum(len(block) - ALIGNMENT for block in self._device.values())
        return self._total - used, self._total

    def create_stream(self) -> int:
        self._must_be_current()
        return self._new(self._streams, _Stream())

    def destroy_stream(self, stream: int) -> None:
        self._must_be_current()
        with self._lock:
            self._drain(self._streams.pop(stream))

    def synchronize(self, stream: int) -> None:
        self._must_be_current()
        with self._lock:
            self._not_while_capturing("cudaStreamSynchronize")
            self._drain(self._streams[stream])

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        self.enqueue(stream, lambda: self._copy(device, host, size))

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        self.enqueue(stream, lambda: self._copy(host, device, size))

    def create_event(self) -> int:
        self._must_be_current()
        return self._new(self._events, (_Stream(), 0))

    def destroy_event(self, event: int) -> None:
        self._must_be_current()
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        self._must_be_current()
        with self._lock:
            found = self._streams[stream]
            self._events[event] = (found, len(found.work))

    def wait(self, stream: int, event: int) -> None:
        found, position = self._events[event]
        self.enqueue(stream, lambda: self._drain(found, position))

    def synchronize_event(self, event: int) -> None:
        self._must_be_current()
        with self._lock:
            self._drain(*self._events[event])

    def happened(self, event: int) -> bool:
        self._must_be_current()
        stream, position = self._events[event]
        return stream.done >= position

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._events[end][1] - self._events[start][1])

    def begin_capture(self, stream: int) -> None:
        self._must_be_current()
        if self.refuse_capture:
            raise DeviceError("cudaStreamBeginCapture answers 900: not permitted")
        with self._lock:
            self._streams[stream].recording = []
            self._streams[stream].recorder = threading.get_ident()

    def end_capture(self, stream: int) -> int:
        self._must_be_current()
        with self._lock:
            found = self._streams[stream]
            assert found.recording is not None, "no capture has begun"
            recorded, found.recording = found.recording, None
            return self._new(self._graphs, recorded)

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        for work in self._graphs[graph]:
            self.enqueue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        self._must_be_current()
        del self._graphs[graph]

    # --- for the doubles and the tests ---------------------------------------------------------

    def enqueue(self, stream: int, work: Work) -> None:
        self._must_be_current()
        with self._lock:
            found = self._streams[stream]
            (found.work if found.recording is None else found.recording).append(work)

    def capturing(self, stream: int) -> bool:
        return self._streams[stream].recording is not None

    def check(self, pointer: int, size: int, *, pinned: bool = False) -> None:
        """Raise unless `size` bytes from `pointer` are live memory."""
        for where in (self._device, self._pinned) if pinned else (self._device,):
            for start, block in where.items():
                if start <= pointer and pointer + size <= start + len(block) - ALIGNMENT:
                    return
        raise DeviceError(f"cudaErrorIllegalAddress (700): {size} bytes at {pointer:#x}")

    def pending(self) -> int:
        """Work nobody has waited for."""
        return sum(len(found.work) - found.done for found in self._streams.values())

    def held(self) -> dict[str, int]:
        """Everything that has not been given back, by kind."""
        return {
            "device": len(self._device),
            "pinned": len(self._pinned),
            "streams": len(self._streams),
            "events": len(self._events),
            "graphs": len(self._graphs),
        }

    def _copy(self, target: int, source: int, size: int) -> None:
        for pointer in (target, source):
            self.check(pointer, size, pinned=True)
        ctypes.memmove(target, source, size)
        self.copied_bytes += size

    def _drain(self, stream: _Stream, until: int | None = None) -> None:
        end = len(stream.work) if until is None else until
        while stream.done < end:
            stream.done += 1
            stream.work[stream.done - 1]()

    def _new(self, where: dict[int, object] | dict[int, _Stream] | dict[int, tuple[_Stream, int]]
             | dict[int, list[Work]], value: object) -> int:  # fmt: skip
        with self._lock:
            self._next += 0x10
            where[self._next] = value  # type: ignore[assignment]  # each caller passes its own kind
            return self._next

    def _must_be_current(self) -> None:
        assert getattr(self._depth, "value", 0) > 0, "called outside current()"

    def _not_while_capturing(self, what: str) -> None:
        """Thread-local capture: only the thread that captures is held to it."""
        me = threading.get_ident()
        for stream in self._streams.values():
            if stream.recording is not None and stream.recorder == me:
                raise DeviceError(f"{what} answers 900: not permitted while capturing")


def _allocate(where: dict[int, ctypes.Array[ctypes.c_uint8]], size: int) -> int:
    block = (ctypes.c_uint8 * (size + ALIGNMENT))()
    ctypes.memset(block, POISON, len(block))
    start = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
    where[start] = block
    return start
