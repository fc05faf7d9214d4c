"""NVIDIA's bindings with a runtime that needs no GPU: engines are computed by ONNX Runtime.

Builder, parser and everything else are the real module's. What runs an engine is strict where
TensorRT leaves behaviour undefined: alignment, scratch memory, one thread and one stream a context,
the flush before a capture. It proves how TensorRT is called, not what TensorRT answers.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from rest_deploy.contracts import Dims, Profile
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.layout import FLOAT, UINT8
from rest_deploy.runtime.cuda import ALIGNMENT
from tests.doubles.cuda import SimulatedCuda

TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8}
SCRATCH_PER_PIXEL = 4
CACHE_MAGIC = b"kernels of "


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


@dataclass(frozen=True)
class Known:
    """What an engine's bytes stand for."""

    graph: Path
    profiles: tuple[Profile, ...]


class SimulatedTensorRt:
    """One flavour's module. `know` an engine before it is deserialized."""

    def __init__(self, real: Any, flavour: Flavour, cuda: SimulatedCuda) -> None:
        self._real = real
        self.cuda = cuda
        self.flavour = flavour
        self.engines: dict[str, Known] = {}
        self.compiled: set[Dims] = set()
        self.refuse = ""
        """A call that answers False from now on, e.g. "execute_async_v3"."""
        self.TensorIOMode = Mode

    def __getattr__(self, name: str) -> Any:
        if self.flavour == "tensorrt" and name in {"CudaGraphStrategy", "ComputeCapability"}:
            raise AttributeError(name)
        return getattr(self._real, name)

    def know(self, engine: bytes, graph: Path, profiles: Sequence[Profile]) -> bytes:
        self.engines[hashlib.sha256(engine).hexdigest()] = Known(graph, tuple(profiles))
        return engine

    def Refitter(self, engine: SimulatedEngine, logger: Any) -> SimulatedRefitter:  # NVIDIA's name
        return SimulatedRefitter(engine, logger)

    def OnnxParserRefitter(  # NVIDIA's name
        self, refitter: SimulatedRefitter, logger: Any
    ) -> SimulatedParserRefitter:
        return SimulatedParserRefitter(refitter, logger)

    def Runtime(self, logger: Any) -> SimulatedRuntime:  # NVIDIA's name
        return SimulatedRuntime(self, logger)


class SimulatedRuntime:
    def __init__(self, trt: SimulatedTensorRt, logger: Any) -> None:
        self._trt = trt
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, engine: bytes) -> SimulatedEngine | None:
        assert not self.engine_host_code_allowed
        known = self._trt.engines.get(hashlib.sha256(engine).hexdigest())
        if known is None:
            self._logger.log(self._trt.ILogger.ERROR, "deserialization failed: magic tag")
            return None
        return SimulatedEngine(self._trt, known, self._logger)


class SimulatedEngine:
    def __init__(self, trt: SimulatedTensorRt, known: Known, logger: Any) -> None:
        import onnxruntime as ort

        self.trt, self.known, self.logger = trt, known, logger
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            str(known.graph), options, providers=["CPUExecutionProvider"]
        )
        self._arguments = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.image = self.session.get_inputs()[0]
        self.layout = UINT8 if self.image.type == "tensor(uint8)" else FLOAT
        self._made: dict[Dims, dict[str, tuple[int, ...]]] = {}
        self.num_io_tensors = len(self._arguments)
        self.num_optimization_profiles = len(known.profiles)
        self.scratch_users: dict[int, int] = {}
        self.contexts = 0

    def __getattr__(self, name: str) -> Any:
        """TensorRT before 10.x had no runtime configuration: the other flavour has none here."""
        if name == "create_runtime_config" and self.trt.flavour == "tensorrt-rtx":
            return lambda: SimulatedConfig(self.trt)
        raise AttributeError(name)

    def create_execution_context(self, argument: Any) -> SimulatedContext:
        strategy = getattr(argument, "strategy", argument)
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts += 1
        return SimulatedContext(self)

    def get_tensor_name(self, index: int) -> str:
        return str(self._arguments[index].name)

    def get_tensor_mode(self, name: str) -> Mode:
        inputs = {argument.name for argument in self.session.get_inputs()}
        return Mode.INPUT if name in inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        (argument,) = (found for found in self._arguments if found.name == name)
        return SimpleNamespace(name=TYPES[argument.type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (argument,) = (found for found in self._arguments if found.name == name)
        return tuple(axis if isinstance(axis, int) else -1 for axis in argument.shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Dims]:  # noqa: ARG002  # one input
        profile = self.known.profiles[index]
        shapes = (profile.minimum, profile.optimum, profile.maximum)
        return [self.layout.shape(shape) for shape in shapes]

    def _shapes(self, shape: Dims) -> dict[str, tuple[int, ...]]:
        """Of all outputs for that input: NVIDIA infers them, here they are computed."""
        if shape not in self._made:
            zeros = np.zeros(shape, NUMPY[TYPES[self.image.type]])
            answers = self.session.run(None, {self.image.name: zeros})
            outputs = self.session.get_outputs()
            self._made[shape] = {o.name: a.shape for o, a in zip(outputs, answers, strict=True)}
        return self._made[shape]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        batch, _, height, width = self.known.profiles[index].maximum
        return batch * height * width * SCRATCH_PER_PIXEL

    def create_serialization_config(self) -> SimulatedSerialization:
        return SimulatedSerialization()

    def serialize_with_config(self, config: SimulatedSerialization) -> bytes:
        assert "INCLUDE_REFIT" in config.set
        assert "EXCLUDE_WEIGHTS" in config.cleared
        content = b"refitted " + hashlib.sha256(self.known.graph.read_bytes()).digest()
        self.trt.know(content, self.known.graph, self.known.profiles)
        return content


class SimulatedSerialization:
    def __init__(self) -> None:
        self.set: set[str] = set()
        self.cleared: set[str] = set()

    def set_flag(self, flag: Any) -> bool:
        self.set.add(flag.name)
        return True

    def clear_flag(self, flag: Any) -> bool:
        self.cleared.add(flag.name)
        return True


class SimulatedRefitter:
    """Takes every initializer of the engine's own graph, and none of another's."""

    def __init__(self, engine: SimulatedEngine, logger: Any) -> None:
        self.engine, self.logger = engine, logger
        self.graph: bytes | None = None

    def get_missing_weights(self) -> list[str]:
        return [] if self.graph is not None else ["everything"]

    def refit_cuda_engine(self) -> bool:
        assert self.graph is not None
        engine = self.engine
        file = engine.known.graph.with_name(f"{len(engine.trt.engines)}.refit.onnx")
        file.write_bytes(self.graph)
        engine.known = replace(engine.known, graph=file)
        return True


class SimulatedParserRefitter:
    def __init__(self, refitter: SimulatedRefitter, logger: Any) -> None:
        self._refitter, self._logger = refitter, logger
        self.num_errors = 0

    def refit_from_bytes(self, model: bytes) -> bool:
        import onnx

        found = [onnx.load(self._refitter.engine.known.graph), onnx.load_from_string(model)]
        one, other = ({w.name: tuple(w.dims) for w in m.graph.initializer} for m in found)
        if one != other:
            self.num_errors = 1
            return False
        self._refitter.graph = model
        return True

    def get_error(self, index: int) -> Any:
        assert index == 0
        return SimpleNamespace(desc=lambda: "a weight of that name has another shape")


class SimulatedConfig(SimpleNamespace):
    def __init__(self, trt: SimulatedTensorRt) -> None:
        super().__init__(strategy=None, cuda_graph_strategy=None, cache=None)
        self._trt = trt

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> SimulatedCache:
        return SimulatedCache(self._trt)

    def set_runtime_cache(self, cache: SimulatedCache) -> bool:
        self.cache = cache
        return True


class SimulatedCache:
    def __init__(self, trt: SimulatedTensorRt) -> None:
        self._trt = trt

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(CACHE_MAGIC):
            return False
        self._trt.compiled |= set(eval(blob.removeprefix(CACHE_MAGIC)))  # our own
        return True

    def serialize(self) -> bytes:
        return CACHE_MAGIC + repr(sorted(self._trt.compiled)).encode()


class SimulatedContext:
    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine, self._trt, self._cuda = engine, engine.trt, engine.trt.cuda
        self.active_optimization_profile = 0
        self._profile_stream: int | None = None
        self._shape: Dims | None = None
        self._flushed = False
        self._scratch = (0, 0)
        self._addresses: dict[str, int] = {}
        self._busy = threading.Lock()

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        self._cuda.check(memory, size)
        self._scratch = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < len(self._engine.known.profiles):
            return self._error(f"no profile {profile_index}")
        self.active_optimization_profile, self._shape = profile_index, None
        self._profile_stream = stream_handle
        return True

    def set_input_shape(self, name: str, shape: Dims) -> bool:
        assert name in {argument.name for argument in self._engine.session.get_inputs()}
        if self._trt.refuse == "set_input_shape":
            return self._error("set_input_shape was made to fail")
        profile = self._engine.known.profiles[self.active_optimization_profile]
        if not profile.holds(self._engine.layout.dims(shape)):
            return self._error(f"{shape} is outside the profile")
        if shape != self._shape:
            self._shape, self._flushed = shape, False
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self._shape is not None else ["image"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape is not None
        shape = self._engine.get_tensor_shape(name)
        if len(shape) == 2:
            return (self._shape[0], shape[1])
        return self._engine._shapes(self._shape)[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory == 0 or memory % ALIGNMENT:
            return self._error(f"the address of {name} is not aligned")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._busy.acquire(blocking=False), "two threads in one context"
        try:
            return self._execute(stream_handle)
        finally:
            self._busy.release()

    def _execute(self, stream: int) -> bool:
        engine = self._engine
        assert stream > 2, "the default stream"
        assert self._profile_stream in (None, stream), "the profile was set on another stream"
        if self._trt.refuse == "execute_async_v3":
            return self._error("execute_async_v3 was made to fail")
        shape = self._shape
        needed = engine.get_device_memory_size_for_profile_v2(self.active_optimization_profile)
        if shape is None or len(self._addresses) != engine.num_io_tensors:
            return self._error("a shape or an address is missing")
        if self._scratch[1] < needed:
            return self._error(f"{self._scratch[1]} bytes of scratch memory, {needed} needed")
        owner = engine.scratch_users.setdefault(self._scratch[0], stream)
        assert owner == stream, "scratch memory of another stream's contexts"
        if self._cuda.capturing(stream) and not self._flushed:
            return self._error("the first enqueue after a change of shape cannot be captured")
        self._flushed = True
        addresses, scratch = dict(self._addresses), self._scratch
        self._cuda.enqueue(stream, lambda: self._compute(shape, addresses, scratch))
        return True

    def _compute(self, shape: Dims, addresses: dict[str, int], scratch: tuple[int, int]) -> None:
        session, cuda = self._engine.session, self._cuda
        self._trt.compiled.add(shape)
        cuda.check(*scratch)
        ctypes.memset(scratch[0], 0x5A, scratch[1])  # whoever else keeps something there loses it
        source = self._engine.image
        images = _view(cuda, addresses[source.name], shape, NUMPY[TYPES[source.type]])
        answers = session.run(None, {source.name: images})
        for target, answer in zip(session.get_outputs(), answers, strict=True):
            _view(cuda, addresses[target.name], answer.shape, answer.dtype)[...] = answer

    def _error(self, message: str) -> bool:
        self._engine.logger.log(self._trt.ILogger.ERROR, message)
        return False


def _view(cuda: SimulatedCuda, pointer: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    cuda.check(pointer, size, pinned=True)
    raw = (ctypes.c_uint8 * size).from_address(pointer)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)
