"""Images that are on the GPU already -> outputs that stay there, without a copy."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
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


class Moment:
    """The end of what is on a stream now."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda = cuda
        self._event = cuda.create_event()
        weakref.finalize(self, _destroy, cuda, self._event)
        cuda.record(self._event, stream)

    def order(self, consumer: int | None) -> None:
        """Let that stream, None for the host, wait for it."""
        with self._cuda.current():
            if consumer is None:
                self._cuda.synchronize_event(self._event)
            else:
                self._cuda.wait(consumer, self._event)

    def over(self) -> bool:
        """Whether it has come. Called with the GPU current."""
        return self._cuda.happened(self._event)


class _Result:
    """Keeps alive what the enqueued work uses: its input, its output, the moment of its end."""

    def __init__(self, parts: tuple[object, ...], done: Moment | None) -> None:
        self._parts = parts
        self._done = done

    def order(self, consumer: int | None) -> None:
        if self._done is not None:
            self._done.order(consumer)


def run_on_device(
    lane: Lane,
    cuda: Cuda,
    wanted: Wanted,
    profile: Callable[[tuple[int, ...]], int],
    images: object,
    out: Mapping[str, object],
    stream: object | None,
) -> dict[str, DeviceArray]:
    """One inference on the lane, between other people's tensors; see `Session.run_on_device`.

    wanted: of the input. profile: the one for a shape, or `ShapeError`. out: where outputs go, by
    name; the others get memory of their own.
    """
    caller = None if stream is None else stream_handle(stream)
    lane.drop_finished()

    def wait(other: int) -> None:
        lane.order(other, lane.stream)

    source = borrow(images, lane.stream, wait=wait)
    _check(source, wanted, cuda)
    index = profile(source.shape)
    made = lane.output_shapes(index, source.shape)  # type: ignore[arg-type]  # four axes, by `profile`
    foreign = [name for name in out if name not in made]
    if foreign:
        raise InputError(f"the engine has no output {foreign[0]!r}, but {', '.join(made)}")
    pointers: dict[str, int] = {}
    borrowed: list[object] = [source]
    owned: list[object] = []
    for name, one in made.items():
        if name in out:
            target = borrow(out[name], lane.stream, wait=wait)
            what = "output" if len(made) == 1 else f"output {name}"
            _check(target, Wanted(what, one.dtype, one.shape), cuda)
            pointers[name] = target.pointer
            borrowed.append(target)
        else:
            buffer = DeviceBuffer(cuda)
            buffer.reserve(one.size)
            pointers[name] = buffer.pointer
            owned.append(buffer)
    if caller is not None:
        lane.order(caller, lane.stream)
    lane.enqueue(index, source.shape, source.pointer, pointers)  # type: ignore[arg-type]  # as above
    done = None
    if caller is None:
        cuda.synchronize(lane.stream)
    else:
        done = Moment(cuda, lane.stream)
        done.order(caller)
    result = _Result((*borrowed, *owned), done)
    if done is not None:
        weakref.finalize(result, _outlive, lane, cuda, done, borrowed)
    return {
        name: DeviceArray(
            pointers[name], one.shape, one.dtype, cuda.device_type, cuda.ordinal, caller or 0,
            result, result.order,
        )
        for name, one in made.items()
    }  # fmt: skip


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


def _outlive(lane: Lane, cuda: Cuda, done: Moment, borrowed: list[object]) -> None:
    """An answer dropped early, as by a caller who named its memory: what was borrowed for the work
    must not go back to its owner, who would use it again, before the work has read it."""
    with released(cuda):
        if not done.over():
            lane.hold(done.over, borrowed)


def _destroy(cuda: Cuda, event: int) -> None:
    with released(cuda):
        cuda.destroy_event(event)
