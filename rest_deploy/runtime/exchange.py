"""Device tensors to and from torch, CuPy, Numba and others, without a copy and without them.

Two protocols: DLPack (https://data-apis.org/array-api/latest, `array.__dlpack__`) and the CUDA
Array Interface (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rest_deploy.errors import ShapeError
from rest_deploy.runtime import dlpack
from rest_deploy.runtime.dlpack import CPU, CUDA, CUDA_HOST, CUDA_MANAGED, DEVICE_NAMES, DTYPES

LEGACY_STREAM = 1
"""CUDA's default stream in both protocols; 2 is the per-thread one and 0 is not allowed."""

UNKNOWN_DEVICE = -1
"""`DeviceView.device` of a CUDA Array Interface, which does not say whose memory it is."""

ON_DEVICE = (CUDA, CUDA_MANAGED)
ON_HOST = (CPU, CUDA_HOST, CUDA_MANAGED)
"""Where streams order the work, and what the host can read."""


@dataclass(frozen=True)
class DeviceView:
    """Somebody's memory, borrowed: C order, given back when `owner` is dropped.

    pointer: address of the first element (any value when a length is 0). dtype: NumPy's name.
    device_type: DLPack's (1 CPU, 2 CUDA, 3 CUDA pinned host, 13 CUDA managed). device: CUDA's
    ordinal or `UNKNOWN_DEVICE`.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device_type: int
    device: int
    owner: object = field(repr=False)


def borrow(tensor: object, stream: int, *, wait: Callable[[int], None]) -> DeviceView:
    """The memory of `tensor`, to be read by work on `stream` (a CUDA stream handle, not 0).

    `wait(other)` makes `stream` wait for the work queued on `other` so far (1 the legacy default
    stream, 2 the per-thread one). DLPack's producers do that themselves, so it is only called for
    the CUDA Array Interface; there the caller keeps the view until its work is done.
    Raises `ShapeError`: neither protocol, not in C order, a type or device not in the lists here,
    or the producer refuses.
    """
    if hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
        return _borrow_dlpack(tensor, stream)
    try:
        interface = getattr(tensor, "__cuda_array_interface__", None)
    except RuntimeError as error:  # torch: the tensor requires grad
        raise _refused("__cuda_array_interface__", tensor, error) from error
    if interface is not None:
        return _borrow_interface(tensor, interface, wait)
    raise ShapeError(
        f"got {_kind(tensor)}; expected a tensor with __dlpack__ and __dlpack_device__ (torch, "
        "CuPy, JAX, NumPy) or with __cuda_array_interface__ (Numba)"
    )


def _borrow_dlpack(tensor: Any, stream: int) -> DeviceView:
    device_type = int(tensor.__dlpack_device__()[0])
    if device_type not in DEVICE_NAMES:
        names = ", ".join(f"{key} {name}" for key, name in DEVICE_NAMES.items())
        raise ShapeError(f"got a tensor on DLPack's device type {device_type}; expected {names}")
    arguments: dict[str, object] = {}
    if device_type in ON_DEVICE:  # elsewhere the argument is forbidden
        arguments["stream"] = _no_zero(stream)
    try:
        capsule = dlpack.request(tensor, dlpack.VERSION, **arguments)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _refused("__dlpack__", tensor, error) from error
    opened = dlpack.open_capsule(capsule)
    described = opened.tensor
    code = described.dtype
    dtype = DTYPES.get((code.code, code.bits)) if code.lanes == 1 else None
    if dtype is None:
        got = f"DLPack's (code, bits, lanes) {(code.code, code.bits, code.lanes)}"
        raise _unsupported(tensor, got)
    shape = tuple(described.shape[: described.ndim]) if described.ndim else ()
    if described.ndim and described.strides:
        dlpack.check_order(shape, tuple(described.strides[: described.ndim]))
    return DeviceView(
        pointer=(described.data or 0) + described.byte_offset,
        shape=shape,
        dtype=dtype,
        device_type=described.device.device_type,
        device=described.device.device_id,
        owner=opened.consume(),
    )


def _borrow_interface(tensor: object, interface: Any, wait: Callable[[int], None]) -> DeviceView:
    try:
        version, typestr = int(interface["version"]), str(interface["typestr"])
        shape = tuple(int(length) for length in interface["shape"])
        pointer = int(interface["data"][0] or 0)
        strides, mask = interface.get("strides"), interface.get("mask")
        strides = None if strides is None else tuple(int(stride) for stride in strides)
        stream = interface.get("stream")
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _refused("__cuda_array_interface__", tensor, error) from error
    if version < 2 or mask is not None:
        masked = "no mask" if mask is None else "a mask"
        raise ShapeError(
            f"got a CUDA Array Interface of version {version} with {masked}; expected version 2 "
            "or 3 without a mask"
        )
    dtype = next((name for name in DTYPES.values() if _typestr(name) == typestr), None)
    if dtype is None:
        raise _unsupported(tensor, typestr)
    if strides is not None:
        dlpack.check_order(shape, strides, np.dtype(dtype).itemsize)
    if not pointer and 0 not in shape:
        raise ShapeError(f"got a null pointer for a tensor of shape {shape}; expected its address")
    if stream is not None:
        wait(_no_zero(int(stream)))
    return DeviceView(pointer, shape, dtype, CUDA, UNKNOWN_DEVICE, tensor)


class DeviceArray:
    """Our memory, lent out: `torch.from_dlpack(array)`, `cupy.from_dlpack(array)`,
    `numba.cuda.as_cuda_array(array)`. C order. Whatever borrowed it keeps `owner` alive.
    """

    def __init__(
        self,
        pointer: int,
        shape: Sequence[int],
        dtype: str,
        device_type: int,
        device: int,
        stream: int,
        owner: object,
        order: Callable[[int | None], None],
    ) -> None:
        """stream: the one our work runs on. order(consumer): make that stream wait for our work
        queued so far (1 the legacy default stream, 2 the per-thread one); None: make the host
        wait. Raises `ShapeError` for a dtype that the protocols here do not carry.
        """
        if dtype not in DTYPES.values():
            raise _unsupported(self, dtype)
        self.pointer = pointer
        self.shape = tuple(shape)
        self.dtype = dtype
        self.nbytes = math.prod(self.shape) * np.dtype(dtype).itemsize
        self._device = (device_type, device)
        self._stream = stream
        self._owner = owner
        self._order = order

    def __repr__(self) -> str:
        kind, device = self._device
        return f"DeviceArray(shape={self.shape}, {self.dtype}, {DEVICE_NAMES[kind]} {device})"

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        if self._device[0] == CPU:
            raise AttributeError("this array is in host memory; __cuda_array_interface__ is not")
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": _typestr(self.dtype),
            "data": (self.pointer if self.nbytes else 0, False),
            "strides": None,
            "stream": self._stream or LEGACY_STREAM,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; `stream` waits for our work first (None: the legacy default stream, or the
        host for memory on the host; -1: nobody waits). Raises `BufferError` for a copy.
        """
        device = self._device if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        readable = device == (CPU, 0) and self._device[0] in ON_HOST
        if copy or not (device == self._device or readable):
            raise BufferError(
                f"{self!r} is lent, not copied: got copy={copy}, dl_device={dl_device}; expected "
                "its own device and no copy (copy what you made from it)"
            )
        self._synchronize(device[0], stream)
        return dlpack.make_capsule(
            self.pointer, self.shape, self.dtype, device, self._owner, max_version
        )

    def _synchronize(self, device_type: int, stream: int | None) -> None:
        if stream is not None and operator.index(stream) == -1:
            return
        if device_type in ON_DEVICE and stream != 0:  # 0 is ambiguous and forbidden
            self._order(LEGACY_STREAM if stream is None else stream)
        elif stream is None:
            self._order(None)
        else:
            raise BufferError(
                f"got stream={stream} for {self!r}; expected None or -1, on the device also 1, 2 "
                "or a handle"
            )


def _unsupported(tensor: object, got: str) -> ShapeError:
    return ShapeError(f"got {_kind(tensor)} of type {got}; expected {', '.join(DTYPES.values())}")


def _refused(protocol: str, tensor: object, error: Exception) -> ShapeError:
    return ShapeError(
        f"{protocol} of {_kind(tensor)} refuses: {type(error).__name__}: {error}",
        hint="hand over a plain, contiguous, detached tensor on the current device",
    )


def _typestr(dtype: str) -> str:
    return np.dtype(dtype).str


def _kind(tensor: object) -> str:
    return f"{type(tensor).__module__}.{type(tensor).__qualname__}"


def _no_zero(stream: int) -> int:
    if stream == 0:
        raise ShapeError(
            "got the CUDA stream 0, which both protocols forbid as ambiguous",
            hint="1 is the legacy default stream, 2 the per-thread one, others are handles",
        )
    return stream
