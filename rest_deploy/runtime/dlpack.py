"""DLPack's capsules: opened, consumed and made. Source: dlpack.h 1.1 and
https://dmlc.github.io/dlpack/latest/python_spec.html.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rest_deploy.errors import ShapeError

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""DLDeviceType: plain host memory, device memory, pinned host memory, managed memory."""

DEVICE_NAMES = {
    CPU: "CPU",
    CUDA: "CUDA",
    CUDA_HOST: "CUDA pinned host",
    CUDA_MANAGED: "CUDA managed",
}

DTYPES = {
    (0, 8): "int8",
    (0, 32): "int32",
    (0, 64): "int64",
    (1, 8): "uint8",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (6, 8): "bool",
}
"""(DLDataTypeCode, bits) -> NumPy's name, for the types that both sides know."""

VERSION = (1, 0)
"""The newest version this module reads; a newer minor one only adds flags and types."""


class Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class Tensor(ctypes.Structure):
    """DLTensor. `strides` in elements, null for C order; the first one: data + byte_offset."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    """DLManagedTensor, in capsules named "dltensor"."""

    _fields_ = (
        ("tensor", Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned, in capsules named "dltensor_versioned"."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


# A capsule stores the name's address, so these bytes live as long as the process.
NAMES = {
    b"dltensor": (b"used_dltensor", Managed),
    b"dltensor_versioned": (b"used_dltensor_versioned", ManagedVersioned),
}

# Called with the GIL held, as a capsule's destructor would: good for deleters that take it
# and for those that count on it.
DELETER = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes, _get_pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes, _set_name.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int


class Capsule(NamedTuple):
    """A capsule nobody consumed yet. `managed` and `tensor` are only there while it is."""

    capsule: object
    name: bytes
    managed: Any

    @property
    def tensor(self) -> Any:
        return self.managed.tensor

    def consume(self) -> Loan:
        """Take the tensor over: the capsule is renamed, the deleter is the loan's to call."""
        _set_name(self.capsule, NAMES[self.name][0])
        return Loan(ctypes.addressof(self.managed), self.managed.deleter)


class Loan:
    """Calls the deleter of one consumed tensor, once, when it goes away itself."""

    def __init__(self, address: int, deleter: int | None) -> None:
        if deleter:  # the producer may have nothing to release
            # At exit the process gives everything back, and the producer may be gone already.
            weakref.finalize(self, DELETER(deleter), address).atexit = False


def open_capsule(capsule: object) -> Capsule:
    """Look into what `__dlpack__` returned and leave it whole. Raises `ShapeError`."""
    for name, (_, layout) in NAMES.items():
        if _is_valid(capsule, name):
            managed = layout.from_address(_get_pointer(capsule, name))
            # The first two fields hold in every version, the rest only within a major one.
            if isinstance(managed, ManagedVersioned) and managed.major != VERSION[0]:
                raise ShapeError(
                    f"got a tensor of DLPack {managed.major}.{managed.minor}; expected DLPack "
                    f"{VERSION[0]}.x or earlier",
                    hint="update rest-deploy, or hand over a tensor of another library",
                )
            return Capsule(capsule, name, managed)
    raise ShapeError(
        f"__dlpack__ returned {capsule!r}; expected a fresh capsule named 'dltensor' or "
        "'dltensor_versioned'",
        hint="call __dlpack__ anew for every consumer",
    )


def request(producer: Any, max_version: tuple[int, int] | None, **arguments: object) -> object:
    """The capsule of `producer`, asked with `max_version` where it takes that."""
    if max_version is not None:
        try:
            return producer.__dlpack__(max_version=max_version, **arguments)
        except TypeError:  # a producer from before DLPack 1.0
            pass
    return producer.__dlpack__(**arguments)


def make_capsule(
    pointer: int,
    shape: tuple[int, ...],
    dtype: str,
    device: tuple[int, int],
    owner: object,
    max_version: tuple[int, int] | None,
) -> object:
    """A capsule of that memory, in C order. It, then its consumer's tensor, keeps `owner` alive.

    NumPy makes it, around an array that only names the address: nothing reads the memory. Its
    destructor and deleter are C, take the GIL themselves and may run while an exception is on its
    way. A ctypes callback may not: it would lose the exception, and a consumer that refuses a
    capsule drops it in just that moment. Here only the device is put right.
    """
    capsule = request(np.asarray(_Lent(pointer, shape, dtype, owner)), max_version)
    tensor = open_capsule(capsule).tensor
    tensor.data, tensor.byte_offset = pointer, 0
    tensor.device.device_type, tensor.device.device_id = device
    return capsule


class _Lent:
    """What NumPy's array holds on to."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: str, owner: object) -> None:
        self._owner = owner
        typestr = np.dtype(dtype).str
        described = {"version": 3, "shape": shape, "typestr": typestr, "data": (pointer, False)}
        self.__array_interface__ = described


def check_order(shape: tuple[int, ...], strides: Sequence[int], step: int = 1) -> None:
    """Raise `ShapeError` unless `strides` are C order; lengths 0 and 1 fit any stride.

    step: the innermost stride, 1 for strides in elements, the item's size for bytes.
    """
    expected = tuple(step * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    fits = 0 in shape or all(
        length == 1 or stride == right
        for length, stride, right in zip(shape, strides, expected, strict=False)
    )
    if len(strides) != len(shape) or not fits:
        raise ShapeError(
            f"got a tensor of shape {shape} with strides {tuple(strides)}; expected C order "
            f"without gaps, strides {expected}",
            hint="make it contiguous: tensor.contiguous(), cupy.ascontiguousarray(tensor)",
        )
