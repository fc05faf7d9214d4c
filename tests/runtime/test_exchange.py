from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack

from rest_deploy.errors import ShapeError
from rest_deploy.runtime import dlpack
from rest_deploy.runtime.exchange import UNKNOWN_DEVICE, DeviceArray, DeviceView, borrow

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
STREAM = 0x5EED


class Buffer:
    """Memory with an owner that can be watched."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.pointer = int(array.ctypes.data)


class Counting:
    """An owner that counts how often it went away."""

    gone = 0

    def __del__(self) -> None:
        type(self).gone += 1


def no_wait(stream: int | None) -> None:
    raise AssertionError(f"waited for {stream}")


def lend(
    buffer: Buffer, device_type: int = CPU, device: int = 0, orders: list[int | None] | None = None
) -> DeviceArray:
    array = buffer.array
    order: Callable[[int | None], None] = ([] if orders is None else orders).append
    return DeviceArray(
        buffer.pointer, array.shape, array.dtype.name, device_type, device, STREAM, buffer, order
    )


def images() -> Buffer:
    return Buffer(np.arange(24, dtype=np.float32).reshape(2, 3, 4))


class Producer:
    """Lends NumPy's memory as a library on another device would, and notes what it was asked."""

    def __init__(self, array: np.ndarray[Any, Any], device_type: int, *, modern: bool) -> None:
        self.array = array
        self.device_type = device_type
        self.modern = modern
        self.calls: list[dict[str, object]] = []
        self.edit: Callable[[Any], None] = lambda _: None

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, 1

    def __dlpack__(self, **arguments: Any) -> object:
        self.calls.append(arguments)
        if "max_version" in arguments and not self.modern:
            raise TypeError("unexpected keyword argument 'max_version'")
        capsule = self.array.__dlpack__(max_version=(1, 0) if self.modern else None)
        opened = dlpack.open_capsule(capsule)
        opened.tensor.device.device_type, opened.tensor.device.device_id = self.device_type, 1
        self.edit(opened.managed)
        self.capsule = capsule
        return capsule


class Interface:
    """An object with nothing but a CUDA Array Interface."""

    def __init__(self, **entries: object) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (0xD000, False),
            **entries,
        }


# --- lent out ---------------------------------------------------------------------------------


def test_torch_sees_the_same_memory_and_keeps_it() -> None:
    buffer = images()
    alive, orders = weakref.ref(buffer), list[int | None]()
    array = lend(buffer, orders=orders)
    tensor = from_dlpack(array)
    assert tensor.data_ptr() == buffer.pointer
    assert tensor.shape == (2, 3, 4)
    assert tensor.dtype == torch.float32
    assert orders == [None]  # the host reads: it waits for our stream
    tensor[1, 2, 3] = -7
    assert buffer.array[1, 2, 3] == -7
    part = tensor[1, 2]
    del buffer, array, tensor
    gc.collect()
    assert alive() is not None
    assert part[3] == -7
    del part
    gc.collect()
    assert alive() is None


def test_numpy_sees_the_same_memory_and_keeps_it() -> None:
    buffer = images()
    alive, array = weakref.ref(buffer), lend(buffer)
    consumed = np.from_dlpack(array)
    assert consumed.ctypes.data == buffer.pointer
    buffer.array[0, 0, 1] = 5
    assert consumed[0, 0, 1] == 5
    del buffer, array
    gc.collect()
    assert alive() is not None
    assert consumed.sum() == 24 * 23 / 2 + 4
    del consumed
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("dtype", sorted(dlpack.DTYPES.values()))
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (1, 3, 1, 2)])
def test_every_type_and_shape_there_and_back(dtype: str, shape: tuple[int, ...]) -> None:
    buffer = Buffer(np.zeros(shape, dtype))
    array = lend(buffer)
    assert array.nbytes == buffer.array.nbytes
    tensor = from_dlpack(array)
    assert tensor.shape == shape
    assert str(tensor.dtype) == f"torch.{dtype}"
    view = borrow(array, STREAM, wait=no_wait)
    assert (view.pointer, view.shape, view.dtype) == (buffer.pointer, shape, dtype)


def test_device_memory_is_described_and_never_read() -> None:
    orders: list[int | None] = []
    array = DeviceArray(0xD000, (2, 3), "float16", CUDA, 4, STREAM, None, orders.append)
    assert array.__dlpack_device__() == (CUDA, 4)
    for max_version in (None, (1, 0), (0, 8), (7, 3)):
        opened = dlpack.open_capsule(array.__dlpack__(stream=9, max_version=max_version))
        tensor = opened.tensor
        assert (tensor.data, tensor.byte_offset) == (0xD000, 0)
        assert (tensor.device.device_type, tensor.device.device_id) == (CUDA, 4)
    view = borrow(array, 7, wait=no_wait)
    assert view == DeviceView(0xD000, (2, 3), "float16", CUDA, 4, view.owner)
    assert orders == [9, 9, 9, 9, 7]


@pytest.mark.parametrize(
    ("device_type", "stream", "ordered"),
    [
        (CUDA, None, [1]),
        (CUDA, 1, [1]),
        (CUDA, 2, [2]),
        (CUDA, 0xABC, [0xABC]),
        (CUDA, -1, []),
        (CUDA_MANAGED, 0xABC, [0xABC]),
        (CUDA_HOST, None, [None]),
        (CPU, None, [None]),
        (CPU, -1, []),
    ],
)
def test_whose_stream_waits(device_type: int, stream: int | None, ordered: list[int]) -> None:
    orders: list[int | None] = []
    lend(images(), device_type, orders=orders).__dlpack__(stream=stream)
    assert orders == ordered


@pytest.mark.parametrize(
    ("device_type", "arguments", "error"),
    [
        (CUDA, {"stream": 0}, BufferError),
        (CUDA, {"stream": "1"}, TypeError),
        (CPU, {"stream": 3}, BufferError),
        (CUDA, {"copy": True}, BufferError),
        (CUDA, {"dl_device": (CPU, 0)}, BufferError),
        (CUDA, {"dl_device": (CUDA, 1)}, BufferError),
        (CPU, {"dl_device": (CUDA, 0)}, BufferError),
    ],
)
def test_what_cannot_be_lent(
    device_type: int, arguments: dict[str, Any], error: type[Exception]
) -> None:
    orders: list[int | None] = []
    array = lend(images(), device_type, orders=orders)
    with pytest.raises(error):
        array.__dlpack__(**arguments)
    assert orders == []


def test_the_own_device_and_no_copy_may_be_asked_for() -> None:
    array = lend(images(), CUDA, 2)
    opened = dlpack.open_capsule(array.__dlpack__(dl_device=(CUDA, 2), copy=False))
    assert opened.tensor.device.device_id == 2


@pytest.mark.parametrize("device_type", [CUDA_HOST, CUDA_MANAGED])
def test_pinned_and_managed_memory_is_the_hosts_too(device_type: int) -> None:
    buffer, orders = images(), list[int | None]()
    array = lend(buffer, device_type, orders=orders)
    consumed = np.from_dlpack(array, device="cpu")
    assert consumed.ctypes.data == buffer.pointer
    assert orders == [None]


def test_cuda_array_interface() -> None:
    array = lend(images(), CUDA)
    assert array.__cuda_array_interface__ == {
        "version": 3,
        "shape": (2, 3, 4),
        "typestr": "<f4",
        "data": (array.pointer, False),
        "strides": None,
        "stream": STREAM,
    }
    assert repr(array) == "DeviceArray(shape=(2, 3, 4), float32, CUDA 0)"
    default = DeviceArray(0xD000, (0,), "uint8", CUDA, 0, 0, None, no_wait)
    assert default.__cuda_array_interface__["stream"] == 1
    assert default.__cuda_array_interface__["data"] == (0, False)
    assert not hasattr(lend(images(), CPU), "__cuda_array_interface__")


def test_type_nobody_carries() -> None:
    with pytest.raises(ShapeError, match=r"float8_e4m3fn; expected int8, .*float16"):
        DeviceArray(0xD000, (1,), "float8_e4m3fn", CUDA, 0, STREAM, None, no_wait)


# --- given back -------------------------------------------------------------------------------


@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_a_capsule_nobody_wanted(max_version: tuple[int, int] | None) -> None:
    buffer = images()
    alive = weakref.ref(buffer)
    capsule = lend(buffer).__dlpack__(max_version=max_version)
    del buffer
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_a_consumer_that_refuses_keeps_its_own_error() -> None:
    # NumPy drops the capsule while its error is on its way.
    buffer = images()
    alive, array = weakref.ref(buffer), lend(buffer, CUDA)
    with pytest.raises((BufferError, RuntimeError), match="device"):
        np.from_dlpack(array)
    del buffer, array
    gc.collect()
    assert alive() is None


def test_given_back_by_another_thread() -> None:
    buffer = images()
    alive, held = weakref.ref(buffer), [from_dlpack(lend(buffer))]
    views = [borrow(lend(buffer), STREAM, wait=no_wait), lend(buffer).__dlpack__()]
    del buffer

    def drop() -> None:
        held.clear()
        views.clear()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()
    gc.collect()
    assert alive() is None


def test_every_owner_goes_once_and_nothing_grows() -> None:
    memory = np.zeros(8, np.float32)

    class Owner(Counting):
        pass

    def rounds(count: int) -> None:
        for index in range(count):
            array = DeviceArray(
                memory.ctypes.data, (8,), "float32", CPU, 0, STREAM, Owner(), lambda _: None
            )
            if index % 4 == 0:
                from_dlpack(array)
            elif index % 4 == 1:
                np.from_dlpack(array)
            elif index % 4 == 2:
                borrow(array, STREAM, wait=no_wait)
            else:
                array.__dlpack__()

    rounds(100)
    gc.collect()
    assert Owner.gone == 100
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        rounds(1000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert Owner.gone == 1100
    assert grown < 32 * 1024  # weakref's own table; a leak of one object a round is 48,000 or more


def test_a_tensor_that_outlives_the_program() -> None:
    program = """
import numpy, torch
from rest_deploy.runtime.exchange import DeviceArray, borrow
memory = numpy.ones(4, numpy.float32)
array = DeviceArray(memory.ctypes.data, (4,), "float32", 1, 0, 5, memory, lambda stream: None)
torch.kept = torch.from_dlpack(array)
numpy.kept = borrow(torch.ones(3), 5, wait=print)
torch.unused = array.__dlpack__()
print(torch.kept.sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4.0\n", "")


# --- borrowed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor", [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float16), torch.zeros(0, 3)]
)
def test_borrow_from_torch(tensor: torch.Tensor) -> None:
    view = borrow(tensor, STREAM, wait=no_wait)
    assert view.pointer == tensor.data_ptr()
    assert view.shape == tuple(tensor.shape)
    assert f"torch.{view.dtype}" == str(tensor.dtype)
    assert (view.device_type, view.device) == (CPU, 0)


def test_borrow_from_numpy_read_only() -> None:
    array = np.arange(6, dtype=np.uint8)[2:]
    array.flags.writeable = False
    view = borrow(array, STREAM, wait=no_wait)
    assert view.pointer == array.ctypes.data
    assert (view.shape, view.dtype) == ((4,), "uint8")


def test_a_view_keeps_the_memory_until_it_goes() -> None:
    class Watched(np.ndarray[Any, Any]):
        pass

    array = np.zeros(3, np.float32).view(Watched)
    alive, view = weakref.ref(array), borrow(array, STREAM, wait=no_wait)
    del array
    gc.collect()
    assert alive() is not None
    assert view.owner is not None
    del view
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(4, 6).t(),
        torch.ones(4, 6)[:, ::2],
        torch.ones(1, 3).expand(2, 3),
        np.ones((4, 6), np.float32)[:, 1:],
        np.asfortranarray(np.ones((4, 6), np.float32)),
        np.ones(4, np.float32)[::-1],
    ],
)
def test_gaps_are_refused(tensor: object) -> None:
    with pytest.raises(ShapeError, match=r"strides \(.*expected C order"):
        borrow(tensor, STREAM, wait=no_wait)


def test_strides_of_length_one_do_not_matter() -> None:
    tensor = torch.ones(3, 4)[:, :1].t()  # (1, 3) with strides (1, 4): a gap
    with pytest.raises(ShapeError):
        borrow(tensor, STREAM, wait=no_wait)
    row = torch.ones(5, 4)[2:3].as_strided((1, 4, 1), (77, 1, 99))
    assert borrow(row, STREAM, wait=no_wait).pointer == row.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), r"\(5, 64, 1\); expected int8"),
        (torch.ones(2, dtype=torch.bfloat16), r"\(4, 16, 1\); expected int8"),
        (torch.ones(2, requires_grad=True), r"torch.Tensor refuses: BufferError.*grad"),
        (np.ones(2, ">f4"), "refuses: BufferError"),
        (np.array(["a"]), "numpy.ndarray refuses"),
        ([1.0, 2.0], r"got builtins.list; expected a tensor with __dlpack__"),
        (None, "got builtins.NoneType"),
    ],
)
def test_tensors_nobody_can_use(tensor: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        borrow(tensor, STREAM, wait=no_wait)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("device_type", [CPU, CUDA, CUDA_HOST, CUDA_MANAGED])
def test_the_producer_is_given_our_stream(modern: bool, device_type: int) -> None:
    producer = Producer(np.ones((2, 2), np.float32), device_type, modern=modern)
    view = borrow(producer, STREAM, wait=no_wait)
    stream = {"stream": STREAM} if device_type in (CUDA, CUDA_MANAGED) else {}
    expected = [{"max_version": (1, 0), **stream}]
    assert producer.calls == (expected if modern else [*expected, stream])
    assert view.pointer == producer.array.ctypes.data
    assert (view.device_type, view.device) == (device_type, 1)
    name = "used_dltensor_versioned" if modern else "used_dltensor"
    assert f'"{name}"' in repr(producer.capsule)


def test_an_offset_and_absent_strides() -> None:
    def edit(managed: Any) -> None:
        managed.tensor.byte_offset = 8
        managed.tensor.strides = None

    producer = Producer(np.ones((2, 2), np.float32), CUDA, modern=True)
    producer.edit = edit
    view = borrow(producer, STREAM, wait=no_wait)
    assert view.pointer == producer.array.ctypes.data + 8


def test_vector_types_are_refused() -> None:
    producer = Producer(np.ones(2, np.float32), CUDA, modern=True)
    producer.edit = lambda managed: setattr(managed.tensor.dtype, "lanes", 4)
    with pytest.raises(ShapeError, match=r"\(2, 32, 4\); expected int8"):
        borrow(producer, STREAM, wait=no_wait)


@pytest.mark.parametrize("modern", [True, False])
def test_each_deleter_is_called_once(modern: bool) -> None:
    calls: list[int] = []
    real: dict[int, int] = {}

    def delete(address: int) -> None:
        calls.append(address)
        dlpack.DELETER(real.pop(address))(address)

    deleter = dlpack.DELETER(delete)

    def edit(managed: Any) -> None:
        real[ctypes.addressof(managed)] = managed.deleter
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p).value

    producer = Producer(np.ones(2, np.float32), CPU, modern=modern)
    producer.edit = edit
    for count in range(1, 1001):
        view = borrow(producer, STREAM, wait=no_wait)
        del producer.capsule  # consumed: its destructor must leave the tensor alone
        assert len(calls) == count - 1
        del view
        assert len(calls) == count
    assert not real
    producer.array = np.ones((2, 2), np.float32).T
    with pytest.raises(ShapeError, match="C order"):
        borrow(producer, STREAM, wait=no_wait)
    assert '"dltensor' in repr(producer.capsule)  # refused: left to its own destructor
    del producer.capsule
    gc.collect()
    assert len(calls) == 1001


def test_nothing_to_delete() -> None:
    producer = Producer(np.ones(2, np.float32), CPU, modern=True)
    saved: list[Any] = []

    def edit(managed: Any) -> None:
        saved.append((managed, managed.deleter))
        managed.deleter = None

    producer.edit = edit
    view = borrow(producer, STREAM, wait=no_wait)
    assert view.pointer == producer.array.ctypes.data
    del view  # without a deleter there is nothing to call


def test_a_later_dlpack_and_a_used_capsule() -> None:
    producer = Producer(np.ones(2, np.float32), CPU, modern=True)
    producer.edit = lambda managed: setattr(managed, "major", 2)
    with pytest.raises(ShapeError, match=r"DLPack 2\.\d; expected DLPack 1\.x"):
        borrow(producer, STREAM, wait=no_wait)
    used = np.ones(2, np.float32).__dlpack__()
    dlpack.open_capsule(used).consume()
    with pytest.raises(ShapeError, match="expected a fresh capsule"):
        dlpack.open_capsule(used)
    with pytest.raises(ShapeError, match="returned 3; expected"):
        dlpack.open_capsule(3)


def test_foreign_devices_and_stream_zero() -> None:
    metal = Producer(np.ones(2, np.float32), 8, modern=True)
    with pytest.raises(ShapeError, match="device type 8; expected 1 CPU, 2 CUDA"):
        borrow(metal, STREAM, wait=no_wait)
    cuda = Producer(np.ones(2, np.float32), CUDA, modern=True)
    with pytest.raises(ShapeError, match="stream 0"):
        borrow(cuda, 0, wait=no_wait)
    assert not metal.calls + cuda.calls


# --- borrowed by the CUDA Array Interface -----------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "waited"),
    [
        ({}, []),
        ({"version": 2}, []),
        ({"stream": None}, []),
        ({"stream": 1}, [1]),
        ({"stream": 2}, [2]),
        ({"stream": 0xABC}, [0xABC]),
    ],
)
def test_interface_stream(entries: dict[str, object], waited: list[int]) -> None:
    waits: list[int] = []
    tensor = Interface(**entries)
    view = borrow(tensor, STREAM, wait=waits.append)
    assert view == DeviceView(0xD000, (2, 3), "float32", CUDA, UNKNOWN_DEVICE, tensor)
    assert waits == waited


@pytest.mark.parametrize(
    "entries",
    [
        {"strides": (12, 4)},
        {"shape": (1, 3), "strides": (999, 4)},
        {"shape": (0, 3), "data": (0, False)},
        {"shape": (0, 3), "data": (None, True), "strides": (1, 1)},
        {"shape": ()},
        {"typestr": "|u1"},
        {"typestr": "|b1"},
        {"data": (0xD000, True)},
    ],
)
def test_interface_accepted(entries: dict[str, object]) -> None:
    interface = Interface(**entries)
    view = borrow(interface, STREAM, wait=no_wait)
    assert view.owner is interface
    assert view.shape == interface.__cuda_array_interface__["shape"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"stream": 0}, "stream 0"),
        ({"strides": (4, 8)}, r"strides \(4, 8\); expected C order .* strides \(12, 4\)"),
        ({"strides": (24, 8)}, "expected C order"),
        ({"strides": (6, 2)}, r"strides \(6, 2\); expected C order"),
        ({"strides": (4,)}, "expected C order"),
        ({"typestr": "<c8"}, "of type <c8; expected int8"),
        ({"typestr": ">f4"}, "of type >f4; expected int8"),
        ({"version": 1}, "version 1 with no mask; expected version 2 or 3"),
        ({"mask": object()}, "version 3 with a mask; expected"),
        ({"data": (0, False)}, "null pointer"),
        ({"data": None}, "refuses: TypeError"),
        ({"shape": "ab"}, "refuses: ValueError"),
        ({"strides": 4}, "refuses: TypeError"),
    ],
)
def test_interface_refused(entries: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        borrow(Interface(**entries), STREAM, wait=lambda _: None)


def test_interface_that_raises() -> None:
    class Graded:
        @property
        def __cuda_array_interface__(self) -> object:
            raise RuntimeError("Can't get it on Variable that requires grad")

    with pytest.raises(ShapeError, match=r"Graded refuses: RuntimeError.*grad"):
        borrow(Graded(), STREAM, wait=no_wait)


def test_ours_by_the_interface() -> None:
    class OnlyInterface:
        def __init__(self, array: DeviceArray) -> None:
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    waits: list[int] = []
    array = DeviceArray(0xD000, (2, 3), "float16", CUDA, 0, STREAM, None, no_wait)
    view = borrow(OnlyInterface(array), 9, wait=waits.append)
    assert (view.pointer, view.shape, view.dtype) == (0xD000, (2, 3), "float16")
    assert waits == [STREAM]
