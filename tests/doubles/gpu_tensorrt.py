"""TensorRT's Python module for machines with a GPU and without TensorRT: engines are computed by
PyTorch, on the stream and in the memory that the caller names.

Everything below TensorRT is real: driver, streams, events, graphs, memory. What runs an engine is
strict where TensorRT leaves behaviour undefined: alignment, scratch memory, one thread and one
stream a context, the flush before a capture. It proves how streams and memory are handled, not what
TensorRT answers.

How PyTorch runs inside a capture that it did not begin: the lane enqueues the same shape on the
same stream and thread just before, so libraries have their handles and workspaces, kernels are
loaded and PyTorch's allocator holds the blocks; should it lack one all the same, it allocates it in
a way that a capture allows. Blocks belong to the stream they were made for, which orders a graph's
use of them with every other. They must not go back to the driver while a graph is kept: no
`torch.cuda.empty_cache()` between a capture and its last launch.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rest_deploy.contracts import Dims, Profile
from rest_deploy.layout import Layout
from rest_deploy.runtime.cuda import ALIGNMENT
from rest_deploy.signature import Output

TYPES = {"float32": "FLOAT", "uint8": "UINT8"}
IMAGE = "image"

SCRATCH_PER_PIXEL = 64
"""Bytes; an input of float32, which goes through it, has 12. Large enough to be seen in a leak."""

POISON = 0x5A


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Strategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class Logger:
    """ILogger, as far as `engine.tensorrt.Log` knows it."""

    INTERNAL_ERROR, ERROR = 0, 1


@dataclass(frozen=True)
class Network:
    """What an engine's bytes stand for.

    module: float32, in eval mode on the GPU; images in `layout` -> a tensor, or a tuple of them, as
    `outputs` says. profiles: (batch, 3, height, width).
    """

    module: nn.Module
    outputs: tuple[Output, ...]
    layout: Layout
    profiles: tuple[Profile, ...]

    def shapes(self, image: Dims) -> dict[str, tuple[int, ...]]:
        """Of all outputs, for an input of that shape; they follow from the signature."""
        batch, _, height, width = self.layout.dims(image)
        return {
            one.name: (batch, one.channels, -(-height // one.stride), -(-width // one.stride))
            if one.stride
            else (batch, one.channels)
            for one in self.outputs
        }


class GpuTensorRt:
    """The module. `know` an engine before it is deserialized."""

    __version__ = "10.12.0.36"
    TensorIOMode = Mode
    ExecutionContextAllocationStrategy = Strategy
    ILogger = Logger

    def __init__(self) -> None:
        self.engines: dict[str, Network] = {}
        self.refuse = ""
        """What is refused from now on: "enqueue"; "capture", an enqueue on a stream that captures;
        "capture, void", likewise, and the capture is void, as after a call that none allows."""

    def know(self, engine: bytes, network: Network) -> bytes:
        self.engines[hashlib.sha256(engine).hexdigest()] = network
        return engine

    def Runtime(self, logger: Any) -> Runtime:  # NVIDIA's name
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: GpuTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, engine: bytes) -> Engine | None:
        assert not self.engine_host_code_allowed
        network = self._trt.engines.get(hashlib.sha256(engine).hexdigest())
        if network is None:
            self._logger.log(Logger.ERROR, "deserialization failed: magic tag")
            return None
        return Engine(self._trt, network, self._logger)


class Engine:
    """ICudaEngine."""

    def __init__(self, trt: GpuTensorRt, network: Network, logger: Any) -> None:
        self.trt, self.network, self.logger = trt, network, logger
        self._names = (IMAGE, *(output.name for output in network.outputs))
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(network.profiles)

    def create_execution_context(self, strategy: Strategy) -> Context:
        assert strategy is Strategy.USER_MANAGED
        return Context(self)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == IMAGE else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        dtype = self.network.layout.dtype if name == IMAGE else "float32"
        return SimpleNamespace(name=TYPES[dtype])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == IMAGE:
            return self.network.layout.shape((-1, 3, -1, -1))
        (output,) = (found for found in self.network.outputs if found.name == name)
        return (-1, output.channels, -1, -1) if output.stride else (-1, output.channels)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Dims]:
        assert name == IMAGE
        profile = self.network.profiles[index]
        shapes = (profile.minimum, profile.optimum, profile.maximum)
        return [self.network.layout.shape(shape) for shape in shapes]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        batch, _, height, width = self.network.profiles[index].maximum
        return batch * height * width * SCRATCH_PER_PIXEL


class Context:
    """IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._trt, self._network = engine, engine.trt, engine.network
        self.active_optimization_profile = 0
        self._profile_stream: int | None = None
        self._shape: Dims | None = None
        self._flushed = False
        self._scratch = (0, 0)
        self._addresses: dict[str, int] = {}
        self._views: dict[tuple[int, tuple[int, ...], str], Tensor] = {}
        """Of the last enqueue outside a capture; a capture, which repeats it, asks for no more."""
        self._busy = threading.Lock()

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory
        assert memory % ALIGNMENT == 0
        self._scratch = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < len(self._network.profiles):
            return self._error(f"no profile {profile_index}")
        self.active_optimization_profile, self._shape = profile_index, None
        self._profile_stream = stream_handle
        return True

    def set_input_shape(self, name: str, shape: Dims) -> bool:
        assert name == IMAGE
        profile = self._network.profiles[self.active_optimization_profile]
        if not profile.holds(self._network.layout.dims(shape)):
            return self._error(f"{shape} is outside the profile")
        if shape != self._shape:
            self._shape, self._flushed = shape, False
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self._shape is not None else [IMAGE]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape is not None
        return self._network.shapes(self._shape)[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory == 0 or memory % ALIGNMENT:
            return self._error(f"the address of {name} is not aligned")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._busy.acquire(blocking=False), "two threads in one context"
        try:
            return self._enqueue(stream_handle)
        finally:
            self._busy.release()

    def _enqueue(self, handle: int) -> bool:
        assert handle > 2, "the default stream"
        assert self._profile_stream in (None, handle), "the profile was set on another stream"
        shape, engine = self._shape, self._engine
        needed = engine.get_device_memory_size_for_profile_v2(self.active_optimization_profile)
        if shape is None or len(self._addresses) != engine.num_io_tensors:
            return self._error("a shape or an address is missing")
        if self._scratch[1] < needed:
            return self._error(f"{self._scratch[1]} bytes of scratch memory, {needed} needed")
        if self._trt.refuse == "enqueue":
            return self._error("execute_async_v3 was made to fail")
        stream = torch.cuda.ExternalStream(handle)  # type: ignore[no-untyped-call]  # torch's has none
        with torch.cuda.stream(stream), torch.inference_mode():
            if torch.cuda.is_current_stream_capturing():
                if not self._flushed:
                    return self._error("the first enqueue of a shape cannot be captured")
                if self._trt.refuse.startswith("capture"):
                    return self._refuse_capture(stream)
            else:
                self._views.clear()
            self._flushed = True
            self._compute(shape, needed)
        return True

    def _compute(self, shape: Dims, needed: int) -> None:
        """The images go through the scratch memory and nothing of it is kept: whoever else has
        something there loses it, and whoever else writes there spoils the answer."""
        network = self._network
        scratch = self._view(self._scratch[0], (needed,), "uint8")
        scratch.fill_(POISON)
        images = self._view(self._scratch[0], shape, network.layout.dtype)
        images.copy_(self._view(self._addresses[IMAGE], shape, network.layout.dtype))
        found = network.module(images)
        tensors = found if isinstance(found, tuple) else (found,)
        for (name, made), tensor in zip(network.shapes(shape).items(), tensors, strict=True):
            assert tuple(tensor.shape) == made, f"{name}: {tuple(tensor.shape)}, not {made}"
            self._view(self._addresses[name], made, "float32").copy_(tensor)

    def _view(self, pointer: int, shape: tuple[int, ...], dtype: str) -> Tensor:
        key = (pointer, shape, dtype)
        if key not in self._views:
            self._views[key] = view(pointer, shape, dtype)
        return self._views[key]

    def _refuse_capture(self, stream: Any) -> bool:
        if self._trt.refuse == "capture, void":
            try:
                stream.synchronize()
            except RuntimeError as error:
                return self._error(f"in a capture: {error}")
        return self._error("a capture was made to fail")

    def _error(self, message: str) -> bool:
        self._engine.logger.log(Logger.ERROR, message)
        return False


class _Memory:
    """Somebody's device memory as PyTorch takes it, without a copy and unordered: the caller is on
    the right stream."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: str) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (pointer, False),
            "strides": None,
            "stream": None,
        }


def view(pointer: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """The memory at `pointer`, C order. Raises RuntimeError where it is not the device's."""
    assert math.prod(shape) > 0
    found = torch.as_tensor(_Memory(pointer, shape, dtype), device="cuda")
    assert found.data_ptr() == pointer, "a copy, not the memory itself"
    return found
