"""The CUDA interface: one suite for every provider, on any CUDA GPU, without TensorRT.

The simulated one runs everywhere and shows that the suite can be passed. Without a GPU NVIDIA's is
called all the same: names and arguments must be right, and CUDA's refusal understood.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rest_deploy.errors import DeviceError, InputError, MissingDependencyError
from rest_deploy.runtime import cuda as module
from rest_deploy.runtime import cuda_python, pycuda
from rest_deploy.runtime.cuda import ALIGNMENT, Cuda, DeviceBuffer, PinnedBuffer, open_cuda
from rest_deploy.runtime.cuda_python import CudaPython
from rest_deploy.runtime.pycuda import PyCuda
from tests.doubles.cuda import SimulatedCuda
from tests.doubles.pycuda import SimulatedLibrary, SimulatedPyCuda


def pycuda_over(device: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    package = ModuleType("pycuda")
    package.driver = SimulatedPyCuda(device)  # type: ignore[attr-defined]  # a made-up package
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setattr(pycuda, "require", lambda *_: None)
    monkeypatch.setattr(pycuda, "load_library", lambda: SimulatedLibrary(device))
    return PyCuda()


def opened(name: str, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    if name == "simulated":
        return SimulatedCuda()
    if name == "pycuda over simulated":
        return pycuda_over(SimulatedCuda(), monkeypatch)
    try:
        return open_cuda(name)
    except MissingDependencyError as error:  # DeviceError is one
        pytest.skip(f"{name}: {error.message}")


@pytest.fixture(params=["simulated", "pycuda over simulated", "cuda-python", "pycuda"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    found = opened(request.param, monkeypatch)
    with found.current():
        yield found


def numbers(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def pinned(cuda: Cuda, values: Any) -> PinnedBuffer:
    buffer = PinnedBuffer(cuda)
    buffer.reserve(values.nbytes)
    buffer.array(values.shape, "float32")[...] = values
    return buffer


def test_there_and_back(cuda: Cuda) -> None:
    values = numbers(100_000)
    stream, device = cuda.create_stream(), DeviceBuffer(cuda)
    assert stream > 2, "not one of the default streams"
    device.reserve(values.nbytes)
    assert device.pointer % ALIGNMENT == 0
    source, target = pinned(cuda, values), pinned(cuda, 0 * values)
    cuda.copy_in(device.pointer, source.pointer, values.nbytes, stream)
    cuda.copy_out(target.pointer, device.pointer, values.nbytes, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(target.array(values.shape, "float32"), values)
    cuda.destroy_stream(stream)


def test_a_stream_that_waits_for_another(cuda: Cuda) -> None:
    values = numbers(4_000_000)
    first, second, event = cuda.create_stream(), cuda.create_stream(), cuda.create_event()
    device = DeviceBuffer(cuda)
    device.reserve(values.nbytes)
    source, target = pinned(cuda, values), pinned(cuda, 0 * values)
    cuda.copy_in(device.pointer, source.pointer, values.nbytes, first)
    cuda.record(event, first)
    cuda.wait(second, event)
    cuda.destroy_event(event)  # as callers do: CUDA keeps it until it has happened
    cuda.copy_out(target.pointer, device.pointer, values.nbytes, second)
    cuda.synchronize(second)
    np.testing.assert_array_equal(target.array(values.shape, "float32"), values)
    for stream in (first, second):
        cuda.destroy_stream(stream)


def test_the_host_waits_for_an_event(cuda: Cuda) -> None:
    values = numbers(4_000_000)
    stream, event, device = cuda.create_stream(), cuda.create_event(), DeviceBuffer(cuda)
    device.reserve(values.nbytes)
    source, target = pinned(cuda, values), pinned(cuda, 0 * values)
    cuda.copy_in(device.pointer, source.pointer, values.nbytes, stream)
    cuda.copy_out(target.pointer, device.pointer, values.nbytes, stream)
    cuda.record(event, stream)
    cuda.happened(event)  # true or not, on a GPU: what matters is what it says afterwards
    cuda.synchronize_event(event)
    assert cuda.happened(event)
    np.testing.assert_array_equal(target.array(values.shape, "float32"), values)
    cuda.destroy_event(event)
    cuda.destroy_stream(stream)


def test_an_event_that_has_not_happened() -> None:
    """Asked, not waited for; the simulation does nothing before somebody waits."""
    cuda = SimulatedCuda()
    with cuda.current():
        values = numbers(1000)
        stream, event, device = cuda.create_stream(), cuda.create_event(), DeviceBuffer(cuda)
        device.reserve(values.nbytes)
        source = pinned(cuda, values)
        cuda.copy_in(device.pointer, source.pointer, values.nbytes, stream)
        cuda.record(event, stream)
        assert not cuda.happened(event)
        cuda.synchronize(stream)
        assert cuda.happened(event)


def test_time_between_events(cuda: Cuda) -> None:
    values = numbers(1_000_000)
    stream, device, source = cuda.create_stream(), DeviceBuffer(cuda), pinned(cuda, values)
    device.reserve(values.nbytes)
    start, end = cuda.create_event(), cuda.create_event()
    cuda.record(start, stream)
    cuda.copy_in(device.pointer, source.pointer, values.nbytes, stream)
    cuda.record(end, stream)
    cuda.synchronize(stream)
    assert 0 < cuda.elapsed_ms(start, end) < 10_000
    for event in (start, end):
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)


def test_a_graph_does_its_work_each_time_it_is_launched(cuda: Cuda) -> None:
    first, later = numbers(1000), numbers(1000, seed=1)
    stream, device = cuda.create_stream(), DeviceBuffer(cuda)
    device.reserve(first.nbytes)
    source, target = pinned(cuda, first), pinned(cuda, 0 * first)
    cuda.begin_capture(stream)
    cuda.copy_in(device.pointer, source.pointer, first.nbytes, stream)
    cuda.copy_out(target.pointer, device.pointer, first.nbytes, stream)
    graph = cuda.end_capture(stream)
    cuda.synchronize(stream)
    assert not target.array(first.shape, "float32").any(), "recorded, not done"
    for values in (first, later):
        source.array(values.shape, "float32")[...] = values
        cuda.launch(graph, stream)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(target.array(values.shape, "float32"), values)
    cuda.destroy_graph(graph)
    cuda.destroy_stream(stream)


def test_an_allocation_in_a_capture_fails_and_the_stream_goes_on(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    cuda.begin_capture(stream)
    with pytest.raises(DeviceError):
        cuda.synchronize(stream)
    with contextlib.suppress(DeviceError):  # CUDA's: the capture was void
        cuda.destroy_graph(cuda.end_capture(stream))
    cuda.synchronize(stream)
    cuda.destroy_stream(stream)


def test_memory_is_counted_and_given_back(cuda: Cuda) -> None:
    size = 64 << 20
    before, total = cuda.memory()
    assert 0 < before <= total
    buffer = DeviceBuffer(cuda)
    assert buffer.reserve(size)
    assert not buffer.reserve(size // 2), "what is large enough stays where it is"
    assert before - cuda.memory()[0] >= size
    del buffer
    gc.collect()
    assert before - cuda.memory()[0] < size


def test_more_memory_than_there_is(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match="out of GPU memory"):
        DeviceBuffer(cuda).reserve(1 << 46)
    DeviceBuffer(cuda).reserve(256)


def test_a_pinned_view_beyond_the_buffer(cuda: Cuda) -> None:
    buffer = pinned(cuda, numbers(10))
    with pytest.raises(DeviceError, match="asked of a pinned buffer of 40"):
        buffer.array((11,), "float32")


# --- which provider, and what the real ones say without a GPU ------------------------------------


@pytest.mark.parametrize(
    ("packages", "wanted", "taken"),
    [
        (("cuda.bindings.runtime", "pycuda.driver"), None, "CudaPython"),
        (("pycuda.driver",), None, "PyCuda"),
        (("cuda.bindings.runtime", "pycuda.driver"), "pycuda", "PyCuda"),
        (("cuda.bindings.runtime",), "cuda-python", "CudaPython"),
    ],
)
def test_the_provider_that_is_taken(
    packages: tuple[str, ...], wanted: str | None, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed", lambda name: name in packages)
    monkeypatch.setattr(cuda_python, "CudaPython", lambda ordinal: ("CudaPython", ordinal))
    monkeypatch.setattr(pycuda, "PyCuda", lambda ordinal: ("PyCuda", ordinal))
    found: Any = open_cuda(wanted, 3)
    assert found == (taken, 3)


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [(None, "cuda-python"), ("pycuda", "pycuda"), ("cuda-python", "cuda-python")],
)
def test_no_provider(wanted: str | None, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda _: False)
    with pytest.raises(
        MissingDependencyError, match="GPU memory needs the Python package"
    ) as caught:
        open_cuda(wanted)
    assert caught.value.hint == f"pip install {hint}"


def test_an_unknown_provider() -> None:
    with pytest.raises(InputError, match="unknown CUDA provider 'cupy'; there are cuda-python, py"):
        open_cuda("cupy")


CALLS: dict[str, Callable[[CudaPython], object]] = {
    "cudaMalloc": lambda cuda: cuda.allocate(256),
    "cudaFree": lambda cuda: cuda.free(256),
    "cudaMallocHost": lambda cuda: cuda.allocate_pinned(256),
    "cudaFreeHost": lambda cuda: cuda.free_pinned(256),
    "cudaMemGetInfo": lambda cuda: cuda.memory(),
    "cudaStreamCreateWithFlags": lambda cuda: cuda.create_stream(),
    "cudaStreamDestroy": lambda cuda: cuda.destroy_stream(77),
    "cudaStreamSynchronize": lambda cuda: cuda.synchronize(77),
    "cudaMemcpyAsync": lambda cuda: cuda.copy_in(256, 512, 8, 77),
    "cudaEventCreateWithFlags": lambda cuda: cuda.create_event(),
    "cudaEventDestroy": lambda cuda: cuda.destroy_event(77),
    "cudaEventRecord": lambda cuda: cuda.record(77, 78),
    "cudaStreamWaitEvent": lambda cuda: cuda.wait(77, 78),
    "cudaEventSynchronize": lambda cuda: cuda.synchronize_event(77),
    "cudaEventQuery": lambda cuda: cuda.happened(77),
    "cudaEventElapsedTime": lambda cuda: cuda.elapsed_ms(77, 78),
    "cudaStreamBeginCapture": lambda cuda: cuda.begin_capture(77),
    "cudaStreamEndCapture": lambda cuda: cuda.end_capture(77),
    "cudaGraphLaunch": lambda cuda: cuda.launch(77, 78),
    "cudaGraphExecDestroy": lambda cuda: cuda.destroy_graph(77),
}


def without_gpu() -> CudaPython:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("a GPU is here: made-up handles would be used for real")
    found = CudaPython.__new__(CudaPython)
    found._cuda, found.ordinal = runtime, 0
    return found


@pytest.mark.parametrize("function", CALLS)
def test_every_refusal_is_understood(function: str) -> None:
    """NVIDIA's own package takes the arguments and answers that there is no driver."""
    cuda = without_gpu()
    with pytest.raises(DeviceError, match=f"^{function} answers cudaErrorInsufficientDriver") as e:
        CALLS[function](cuda)
    assert "no NVIDIA driver, or one too old" in e.value.message
    assert e.value.exit_code == 4


def test_the_rest_of_a_capture_has_the_right_names() -> None:
    """What comes after a call that fails without a GPU."""
    runtime = without_gpu()._cuda
    assert [int(runtime.cudaGraphInstantiate(77, 0)[0]), int(runtime.cudaGraphDestroy(77)[0])] == [
        35,
        35,
    ]
    assert int(runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost) == 2


def test_pycuda_names_the_gpu_it_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    pycuda_over(SimulatedCuda(), monkeypatch)
    with pytest.raises(DeviceError, match=r"cuDevicePrimaryCtxRetain: .* invalid device ordinal"):
        PyCuda(1)


def test_pycuda_leaves_no_context_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor after an error, nor when memory goes from a thread that never had one."""
    device = SimulatedCuda()
    found = pycuda_over(device, monkeypatch)
    buffer = DeviceBuffer(found)
    with found.current():
        buffer.reserve(1024)
        with pytest.raises(DeviceError, match="out of GPU memory"):
            found.allocate(1 << 50)
    with pytest.raises(RuntimeError, match="of the caller"), found.current():
        raise RuntimeError("of the caller")
    thread = threading.Thread(target=buffer.close)
    thread.start()
    thread.join()
    assert device.held()["device"] == 0
    assert sys.modules["pycuda"].driver.pushed == []


def test_opening_without_a_gpu() -> None:
    without_gpu()
    with pytest.raises(DeviceError, match="cudaGetDevice answers"):
        open_cuda("cuda-python")
