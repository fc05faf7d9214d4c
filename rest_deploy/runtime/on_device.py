"""Images that are on the GPU already -> logits that stay there, without a copy."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rest_deploy.errors import InputError, ShapeError
from rest_deploy.runtime.cuda import ALIGNMENT, Cuda, DeviceBuffer, released
from rest_deploy.runtime.dlpack import CUDA_MANAGED
from rest_deploy.runtime.exchange import (
    LEGACY_STREAM,
    UNKNOWN_DEVICE,
    DeviceArray,
    DeviceView,
    borrow,
)
from rest_deploy.runtime.execution import Lane


@dataclass(frozen=True)
class Wanted:
    """What the engine takes or makes: its name for errors, type and shape; -1: any length."""

    what: str
    dtype: str
    shape: tuple[int, ...]


class _Result:
    """Keeps alive what the enqueued work uses: its input, its output, the event of its end."""

    def __init__(self, cuda: Cuda, parts: tuple[object, ...], done: int) -> None:
        self._parts = parts
        self._cuda = cuda
        self.done = done
        if done:
            weakref.finalize(self, _destroy, cuda, done)

    def order(self, consumer: int | None) -> None:
        if not self.done:
            return
        with self._cuda.current():
            if consumer is None:
                self._cuda.synchronize_event(self.done)
            else:
                self._cuda.wait(consumer, self.done)


def run_on_device(
    lane: Lane,
    cuda: Cuda,
    wanted: tuple[Wanted, Wanted],
    profile: Callable[[tuple[int, ...]], int],
    images: object,
    out: object | None,
    stream: object | None,
) -> DeviceArray:
    """One inference on the lane, between other people's tensors; see `Session.run_on_device`.

    wanted: of the input and the output. profile: the one for a shape, or `ShapeError`.
    """
    caller = None if stream is None else stream_handle(stream)

    def wait(other: int) -> None:
        lane.order(other, lane.stream)

    source = borrow(images, lane.stream, wait=wait)
    _check(source, wanted[0], cuda)
    index = profile(source.shape)
    shape = (source.shape[0], *wanted[1].shape[1:])
    if out is None:
        buffer = DeviceBuffer(cuda)
        buffer.reserve(lane.output_size(source.shape[0]))
        pointer, owner = buffer.pointer, buffer
    else:
        target = borrow(out, lane.stream, wait=wait)
        _check(target, Wanted(wanted[1].what, wanted[1].dtype, shape), cuda)
        pointer, owner = target.pointer, target  # type: ignore[assignment]  # whatever keeps it alive
    if caller is not None:
        lane.order(caller, lane.stream)
    lane.enqueue(index, source.shape, source.pointer, pointer)  # type: ignore[arg-type]  # four axes, by `profile`
    done = 0
    if caller is None:
        cuda.synchronize(lane.stream)
    else:
        done = cuda.create_event()
        cuda.record(done, lane.stream)
        cuda.wait(caller, done)
    result = _Result(cuda, (source, owner), done)
    return DeviceArray(
        pointer, shape, wanted[1].dtype, cuda.device_type, cuda.ordinal, caller or 0, result,
        result.order,
    )  # fmt: skip


def stream_handle(stream: Any) -> int:
    """A CUDA stream as a number: an int, a torch, CuPy or Numba stream, or one with
    `__cuda_stream__`. The default stream, 0 to most of them, is named explicitly.

    Raises `InputError` for anything else.
    """
    handle = stream
    if hasattr(stream, "__cuda_stream__"):
        handle = stream.__cuda_stream__()[1]
    else:
        for name in ("cuda_stream", "ptr", "handle", "value"):  # torch, CuPy, Numba, its ctypes
            handle = getattr(handle, name, handle)
    if isinstance(handle, bool) or not isinstance(handle, int) or handle < 0:
        raise InputError(f"got {stream!r} as a CUDA stream; expected its handle or the object")
    return handle or LEGACY_STREAM


def _check(view: DeviceView, wanted: Wanted, cuda: Cuda) -> None:
    if view.device_type not in (cuda.device_type, CUDA_MANAGED):
        raise ShapeError(
            f"the {wanted.what} is in the memory of DLPack's device type {view.device_type}, not "
            "of the GPU; Session.run takes arrays of the host"
        )
    if view.device not in (cuda.ordinal, UNKNOWN_DEVICE):
        raise ShapeError(
            f"the {wanted.what} is on GPU {view.device}, the engine on GPU {cuda.ordinal}"
        )
    fits = len(view.shape) == len(wanted.shape) and all(
        expected in (-1, length) for expected, length in zip(wanted.shape, view.shape, strict=True)
    )
    if view.dtype != wanted.dtype or not fits:
        expected = tuple("any" if length < 0 else length for length in wanted.shape)
        raise ShapeError(
            f"got the {wanted.what} as {view.dtype} of shape {view.shape}; expected "
            f"{wanted.dtype} of shape {expected}"
        )
    if view.pointer % ALIGNMENT:
        raise ShapeError(
            f"the {wanted.what} begins at no multiple of {ALIGNMENT} bytes (part of a larger "
            "tensor?), which TensorRT demands; pass a copy of it"
        )


def _destroy(cuda: Cuda, event: int) -> None:
    with released(cuda):
        cuda.destroy_event(event)
