"""Tensors of other libraries in and out of an engine; the GPU is simulated in host memory, so that
NumPy and torch can look at it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.engine import tensorrt
from rest_deploy.errors import DeviceError, InputError, ShapeError
from rest_deploy.runtime.cuda import DeviceBuffer
from rest_deploy.runtime.exchange import DeviceArray
from rest_deploy.runtime.on_device import stream_handle
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.tensorrt import GpuOptions, TensorRtRunner
from tests.doubles.cuda import SimulatedCuda
from tests.doubles.tensorrt import SimulatedTensorRt
from tests.runtime.test_execution import ENGINE, SMALL, images

real = pytest.importorskip("tensorrt_rtx_bindings")
torch = pytest.importorskip("torch")
Float32 = npt.NDArray[Any]  # NumPy's from_dlpack says no more


@pytest.fixture
def cuda() -> SimulatedCuda:
    return SimulatedCuda()


@pytest.fixture
def session(
    cuda: SimulatedCuda, exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Session]:
    module = SimulatedTensorRt(real, "tensorrt", cuda)
    module.know(ENGINE, exported_nano, (SMALL,))
    monkeypatch.setattr(tensorrt, "load", lambda _: module)
    runner = TensorRtRunner(ENGINE, "tensorrt", cuda, GpuOptions())
    metadata = Session.open(exported_nano).metadata
    with Session(runner, metadata, exported_nano, None) as found:
        yield found


@pytest.fixture(scope="module")
def expected(exported_nano: Path) -> Float32:
    return Session.open(exported_nano, threads=1).run(images(2, 64, 48))


class OnDevice:
    """A tensor in the simulated device's memory, and views of it."""

    def __init__(self, cuda: SimulatedCuda, values: Float32, offset: int = 0) -> None:
        self.buffer = DeviceBuffer(cuda)
        with cuda.current():
            self.buffer.reserve(values.nbytes + offset)
        self.array = DeviceArray(
            self.buffer.pointer + offset, values.shape, str(values.dtype), cuda.device_type, 0, 0,
            self.buffer, lambda _: None,
        )  # fmt: skip
        self.numpy: Float32 = np.from_dlpack(self.array)
        self.numpy[...] = values


def test_in_and_out(session: Session, cuda: SimulatedCuda, expected: Float32) -> None:
    source = OnDevice(cuda, images(2, 64, 48))
    answer = session.run_on_device(source.array)
    copied = cuda.copied_bytes
    assert (answer.shape, answer.dtype) == ((2, 1000), "float32")
    assert np.abs(torch.from_dlpack(answer).numpy() - expected).max() < 1e-5
    assert (cuda.copied_bytes, copied) == (0, 0)


def test_torch_tensors(session: Session, cuda: SimulatedCuda, expected: Float32) -> None:
    source = OnDevice(cuda, images(2, 64, 48))
    tensor = torch.from_dlpack(source.array)
    target = torch.from_dlpack(OnDevice(cuda, np.zeros((2, 1000), np.float32)).array)
    answer = session.run_on_device(tensor, out=target)
    assert answer.pointer == target.data_ptr()
    assert np.abs(target.numpy() - expected).max() < 1e-5


def test_asynchronously_on_the_callers_stream(
    session: Session, cuda: SimulatedCuda, expected: Float32
) -> None:
    """Its earlier work is waited for, its later work finds the answer, nobody waits here."""
    values = images(2, 64, 48)
    source = OnDevice(cuda, np.full_like(values, np.nan))
    found: list[Float32] = []
    with cuda.current():
        stream = cuda.create_stream()
        cuda.enqueue(stream, lambda: source.numpy.__setitem__(..., values))
        answer = session.run_on_device(source.array, stream=stream)
        assert cuda.pending() > 0
        view = _look(answer)
        cuda.enqueue(stream, lambda: found.append(view.copy()))
        cuda.synchronize(stream)
    assert np.abs(found[0] - expected).max() < 1e-5


def test_another_consumer_waits(session: Session, cuda: SimulatedCuda, expected: Float32) -> None:
    """One that takes the answer on the host, and one on a stream of its own."""
    source = OnDevice(cuda, images(2, 64, 48))
    with cuda.current():
        stream, other = cuda.create_stream(), cuda.create_stream()
        answer = session.run_on_device(source.array, stream=stream)
        assert cuda.pending() > 0
        assert np.abs(np.from_dlpack(answer) - expected).max() < 1e-5
        again = session.run_on_device(source.array, stream=stream)
        found: list[Float32] = []
        again._order(other)
        cuda.enqueue(other, lambda: found.append(_look(again).copy()))
        cuda.synchronize(other)
    assert np.abs(found[0] - expected).max() < 1e-5


def test_without_waiting_it_is_not_there(session: Session, cuda: SimulatedCuda) -> None:
    """The simulated device is lazy enough for the tests above to fail."""
    source = OnDevice(cuda, images(2, 64, 48))
    with cuda.current():
        answer = session.run_on_device(source.array, stream=cuda.create_stream())
        assert (_look(answer).view(np.uint8) == 0xA5).all()


def test_what_the_work_uses_lives_as_long_as_the_answer(
    session: Session, cuda: SimulatedCuda, expected: Float32
) -> None:
    source = OnDevice(cuda, images(2, 64, 48))
    alive = weakref.ref(source.buffer)
    with cuda.current():
        stream = cuda.create_stream()
        answer = session.run_on_device(source.array, stream=stream)
    del source
    gc.collect()
    assert alive() is not None
    tensor = torch.from_dlpack(answer)
    del answer
    gc.collect()
    assert np.abs(tensor.numpy() - expected).max() < 1e-5
    events = cuda.held()["events"]
    del tensor
    gc.collect()
    assert alive() is None
    assert cuda.held()["events"] == events - 1


def test_an_answer_dropped_before_the_work_is_done(
    session: Session, cuda: SimulatedCuda, expected: Float32
) -> None:
    """The caller named the memory and needs no answer object: the input must live on all the
    same, and is let go by the first call after the work, or when the session closes."""
    source, target = OnDevice(cuda, images(2, 64, 48)), OnDevice(cuda, 0 * expected)
    alive = weakref.ref(source.buffer)
    with cuda.current():
        stream = cuda.create_stream()
        session.run_on_device(source.array, out=target.array, stream=stream)
        del source
        gc.collect()
        assert alive() is not None, "the work has yet to read it"
        cuda.synchronize(stream)
        assert np.abs(target.numpy - expected).max() < 1e-5
        another = OnDevice(cuda, images(1, 64, 48))
        session.run_on_device(another.array)
        gc.collect()
        assert alive() is None
        alive = weakref.ref(another.buffer)
        session.run_on_device(another.array, stream=stream)
        del another
        gc.collect()
        assert alive() is not None
        session.close()
        gc.collect()
        assert alive() is None


def test_the_answer_outlives_the_session(
    session: Session, cuda: SimulatedCuda, expected: Float32
) -> None:
    source = OnDevice(cuda, images(2, 64, 48))
    answer = session.run_on_device(source.array)
    session.close()
    assert np.abs(np.from_dlpack(answer) - expected).max() < 1e-5


def _look(answer: DeviceArray) -> Float32:
    """Without waiting."""
    found: Float32 = np.from_dlpack(
        DeviceArray(answer.pointer, answer.shape, answer.dtype, 1, 0, 0, answer, lambda _: None)
    )
    return found


def refused(session: Session, words: str, tensor: Any, out: Any = None) -> None:
    """And the next inference goes on in the same lane."""
    with pytest.raises(ShapeError, match=words):
        session.run_on_device(tensor, out=out)
    session.run(images(1, 64, 64))
    assert len(session.runner.lanes()) == 1  # type: ignore[attr-defined]  # an engine's runner


def test_shapes_and_types(session: Session, cuda: SimulatedCuda) -> None:
    good = OnDevice(cuda, images(2, 64, 48))
    half = OnDevice(cuda, images(2, 64, 48).astype(np.float16))
    three = OnDevice(cuda, np.zeros((2, 64, 48), np.float32))
    refused(
        session, r"the input as float16 of shape \(2, 3, 64, 48\); expected float32", half.array
    )
    refused(session, "expected float32 of shape", three.array)
    refused(session, "nearest of its 1 profiles", OnDevice(cuda, images(2, 96, 96)).array)
    refused(session, "no multiple of 256 bytes", OnDevice(cuda, images(2, 64, 48), offset=4).array)
    refused(session, "C order|contiguous", torch.from_dlpack(good.array).transpose(2, 3))
    short = OnDevice(cuda, np.zeros((1, 1000), np.float32))
    refused(session, r"the output as float32 of shape \(1, 1000\)", good.array, short.array)
    refused(session, "expected a tensor with __dlpack__", [[1.0]])


def test_memory_of_elsewhere(session: Session, cuda: SimulatedCuda) -> None:
    cuda.device_type = 2
    refused(session, "device type 1, not of the GPU; Session.run takes", images(2, 64, 48))
    cuda.device_type, cuda.ordinal = 1, 1
    refused(session, "on GPU 0, the engine on GPU 1", OnDevice(cuda, images(2, 64, 48)).array)


def test_a_refused_enqueue(session: Session, cuda: SimulatedCuda) -> None:
    source = OnDevice(cuda, images(2, 64, 48))
    session.run_on_device(source.array)
    session.runner._trt.refuse = "set_input_shape"  # type: ignore[attr-defined]  # the double's
    with pytest.raises(DeviceError, match="TensorRT refused the input shape"):
        session.run_on_device(OnDevice(cuda, images(1, 64, 48)).array)
    session.runner._trt.refuse = ""  # type: ignore[attr-defined]  # as above
    session.run_on_device(source.array)


def test_onnx_models_take_host_arrays(exported_nano: Path) -> None:
    with pytest.raises(InputError, match="which takes arrays of the host"):
        Session.open(exported_nano).run_on_device(images(1, 64, 64))


class WithProtocol:
    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, 77)


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (77, 77),
        (0, 1),
        (SimpleNamespace(cuda_stream=77), 77),
        (SimpleNamespace(cuda_stream=0), 1),
        (SimpleNamespace(ptr=77), 77),
        (SimpleNamespace(handle=77), 77),
        (SimpleNamespace(handle=SimpleNamespace(value=77)), 77),
        (WithProtocol(), 77),
    ],
)
def test_streams(stream: object, handle: int) -> None:
    assert stream_handle(stream) == handle


@pytest.mark.parametrize("stream", ["77", -1, True, object()])
def test_no_streams(stream: object) -> None:
    with pytest.raises(InputError, match="as a CUDA stream"):
        stream_handle(stream)
