"""CUDA through cuda-python (`cuda.bindings.runtime`), NVIDIA's own bindings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rest_deploy.errors import DeviceError, DeviceMemoryError, require

DEVICE_TYPE = 2
"""DLPack's kDLCUDA."""

OUT_OF_MEMORY = 2
NOT_READY = 600
"""cudaErrorNotReady, CUDA_ERROR_NOT_READY: no failure."""

LESS_MEMORY = "smaller batches, fewer contexts, or an engine with less scratch"

MEANINGS = {
    35: ("no NVIDIA driver, or one too old for this CUDA", "rest-deploy doctor"),
    100: ("no GPU is visible", "rest-deploy doctor"),
    101: ("there is no GPU of that number", "rest-deploy doctor lists them"),
    700: ("a kernel left its memory; the process cannot go on with this GPU", "start it anew"),
    719: ("a kernel failed; the process cannot go on with this GPU", "start it anew"),
}
"""Values of cudaError_t: (what it means, what to do)."""


class CudaPython:
    """See `runtime.cuda.Cuda`. The CUDA runtime works in the primary context by itself."""

    name = "cuda-python"
    device_type = DEVICE_TYPE

    def __init__(self, ordinal: int = 0) -> None:
        require("cuda.bindings.runtime", "tensorrt")
        from cuda.bindings import runtime

        self._cuda: Any = runtime
        self.ordinal = ordinal
        with self.current():
            pass

    @contextmanager
    def current(self) -> Iterator[None]:
        before = self._ask("cudaGetDevice")
        self._ask("cudaSetDevice", self.ordinal)
        try:
            yield
        finally:
            if before != self.ordinal:
                self._ask("cudaSetDevice", before)

    def allocate(self, size: int) -> int:
        return int(self._ask("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        self._ask("cudaFree", pointer)

    def allocate_pinned(self, size: int) -> int:
        return int(self._ask("cudaMallocHost", size))

    def free_pinned(self, pointer: int) -> None:
        self._ask("cudaFreeHost", pointer)

    def memory(self) -> tuple[int, int]:
        free, total = self._ask("cudaMemGetInfo")
        return int(free), int(total)

    def create_stream(self) -> int:
        return int(self._ask("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._ask("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._ask("cudaStreamSynchronize", stream)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._ask("cudaMemcpyAsync", device, host, size, kind, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._ask("cudaMemcpyAsync", host, device, size, kind, stream)

    def create_event(self) -> int:
        return int(self._ask("cudaEventCreateWithFlags", self._cuda.cudaEventDefault))

    def destroy_event(self, event: int) -> None:
        self._ask("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._ask("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._ask("cudaStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self._ask("cudaEventSynchronize", event)

    def happened(self, event: int) -> bool:
        (status,) = self._cuda.cudaEventQuery(event)
        if int(status) not in (0, NOT_READY):
            raise failure("cudaEventQuery", int(status), str(status.name))
        return int(status) == 0

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._ask("cudaEventElapsedTime", start, end))

    def begin_capture(self, stream: int) -> None:
        # Thread-local: other threads may allocate meanwhile without voiding the capture.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        recorded = self._ask("cudaStreamEndCapture", stream)
        try:
            return int(self._ask("cudaGraphInstantiate", recorded, 0))
        finally:
            self._ask("cudaGraphDestroy", recorded)

    def launch(self, graph: int, stream: int) -> None:
        self._ask("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._ask("cudaGraphExecDestroy", graph)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call a function that answers (status, value, …): the value, or all of several."""
        status, *values = getattr(self._cuda, function)(*arguments)
        if int(status):
            raise failure(function, int(status), str(status.name))
        return values[0] if len(values) == 1 else tuple(values)


def failure(function: str, code: int, name: str) -> DeviceError:
    """What CUDA's refusal means."""
    if code == OUT_OF_MEMORY:
        text = f"{function} answers {name} ({code}): out of GPU memory"
        return DeviceMemoryError(text, hint=LESS_MEMORY)
    meaning, hint = MEANINGS.get(code, ("see cudaError_t in CUDA's documentation", None))
    return DeviceError(f"{function} answers {name} ({code}): {meaning}", hint=hint)
