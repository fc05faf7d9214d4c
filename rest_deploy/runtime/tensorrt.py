"""A TensorRT or TensorRT-RTX engine on the GPU of this machine, for any number of threads."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Profile, TensorSpec
from rest_deploy.engine import tensorrt
from rest_deploy.engine.profiles import profile_for
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.errors import (
    ArtifactError,
    DeviceError,
    DeviceMemoryError,
    InputError,
    ShapeError,
)
from rest_deploy.layout import layout_of_type
from rest_deploy.runtime.cuda import Cuda, open_cuda
from rest_deploy.runtime.exchange import DeviceArray
from rest_deploy.runtime.execution import DeviceTimes, Lane
from rest_deploy.runtime.kernel_cache import KernelCache
from rest_deploy.runtime.on_device import Wanted, run_on_device

T = TypeVar("T")

log = logging.getLogger(__name__)

MESSAGES_KEPT = 200
"""Of TensorRT at run time, for the error that follows them."""

DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}


@dataclass(frozen=True)
class GpuOptions:
    """How an engine is run.

    cuda: the package that provides GPU memory, "cuda-python" or "pycuda"; None: the first that is
    installed. ordinal: which GPU, as CUDA counts them. contexts: most inferences at once; each
    needs the engine's scratch memory, further threads wait. graphs: CUDA graphs kept by each
    context, one a shape; 0: none. kernel_cache: keep TensorRT-RTX's compiled kernels beside the
    engine.
    """

    cuda: str | None = None
    ordinal: int = 0
    contexts: int = 2
    graphs: int = 8
    kernel_cache: bool = True

    def __post_init__(self) -> None:
        if self.ordinal < 0 or self.contexts < 1 or self.graphs < 0:
            raise InputError(
                f"expected ordinal >= 0, contexts >= 1 and graphs >= 0, got {self.ordinal}, "
                f"{self.contexts} and {self.graphs}"
            )


def open_engine(
    content: bytes, flavour: Flavour, options: GpuOptions, path: Path, sm: str
) -> TensorRtRunner:
    """Run the engine whose bytes were checked. path: where it lies, for its kernel cache; sm: of
    the GPU.

    Raises `MissingDependencyError` (no CUDA package), `ArtifactError`, `DeviceError`.
    """
    kernels = None
    if options.kernel_cache and flavour == "tensorrt-rtx":
        kernels = KernelCache.beside(path, hashlib.sha256(content).hexdigest(), sm)
    cuda = open_cuda(options.cuda, options.ordinal)
    return TensorRtRunner(content, flavour, cuda, options, kernels)


class TensorRtRunner:
    """One deserialized engine and its lanes; see `contracts.Runner`.

    A lane (stream, buffers, scratch memory) is made when all others are busy, up to
    `options.contexts`, and the one that was used last is taken first.
    """

    def __init__(
        self,
        engine: bytes,
        flavour: Flavour,
        cuda: Cuda,
        options: GpuOptions,
        kernels: KernelCache | None = None,
    ) -> None:
        """engine: bytes that `loading.check_engine` let pass. kernels: for TensorRT-RTX.

        Raises `ArtifactError` when TensorRT refuses the engine, `DeviceError` when the GPU does.
        """
        self.cuda = cuda
        self._options = options
        self._trt = tensorrt.load(flavour)
        self._log = tensorrt.Log(self._trt, keep=MESSAGES_KEPT)
        with cuda.current():
            # engine_host_code_allowed stays False: an engine brings no host code of its own.
            self._runtime = self._trt.Runtime(self._log.logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise ArtifactError(f"{flavour} refuses the engine: {self._log.last()}")
            self._kernels = kernels
            self._config, self._cache = self._configured()
        self._read_io()
        self.backend = f"{flavour}/cuda:{cuda.ordinal}"
        self.profiles = self._read_profiles()
        self._idle: list[Lane] = []
        self._lanes: list[Lane] = []
        self._making = 0
        self._limit = options.contexts
        self._closed = False
        self._creating = threading.Lock()
        self._changed = threading.Condition()
        self._ran: set[tuple[int, ...]] = set()

    def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """See `contracts.Runner`. Raises `ShapeError` outside every profile, `DeviceError`."""
        images = feeds[self.input_name]
        profile = self._profile(images.shape)
        answer = self._on_a_lane(lambda lane: lane.run(profile, images))
        self._keep_kernels(images.shape)
        return answer

    def infer_timed(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> tuple[dict[str, npt.NDArray[np.generic]], DeviceTimes]:
        """`infer`, with what the GPU's own clock says of its parts; for measurements."""
        images = feeds[self.input_name]
        profile = self._profile(images.shape)
        answer, times = self._on_a_lane(lambda lane: lane.run_timed(profile, images))
        self._keep_kernels(images.shape)
        return answer, times

    def infer_on_device(
        self, images: object, out: Mapping[str, object], stream: object | None
    ) -> dict[str, DeviceArray]:
        """See `Session.run_all_on_device`."""
        wanted = Wanted("input", self.input_dtype, self._layout.shape((-1, 3, -1, -1)))
        return self._on_a_lane(
            lambda lane: run_on_device(lane, self.cuda, wanted, self._profile, images, out, stream)
        )

    def lanes(self) -> tuple[Lane, ...]:
        """Those made so far: what they captured, what memory they hold."""
        return tuple(self._lanes)

    def close(self) -> None:
        """Give the GPU's memory back, after the inferences that run. No call may follow."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: len(self._idle) == len(self._lanes) and not self._making)
            lanes, self._idle, self._lanes = self._lanes, [], []
        for lane in lanes:
            lane.close()
        with self.cuda.current():
            if self._cache is not None and self._kernels is not None:
                # Also what was compiled for inferences on the device, whose shapes are not counted.
                self._kernels.save(bytes(self._cache.serialize()))
            self._config = self._cache = self._engine = self._runtime = None

    # --- what lanes ask for (execution.Engine) -----------------------------------------------

    def create_context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        argument = strategy if self._config is None else self._config
        with self._creating:  # NVIDIA promises nothing of two threads in one engine
            context = self._engine.create_execution_context(argument)
        if context is None:
            raise self.refused("to make an execution context")
        return context

    def scratch_bytes(self, profile: int) -> int:
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def refused(self, what: str) -> DeviceError:
        return DeviceError(f"TensorRT refused {what}: {self._log.last()}")

    # -----------------------------------------------------------------------------------------

    def _configured(self) -> tuple[Any, Any]:
        """The runtime configuration, where this TensorRT has one, and its kernel cache."""
        self.own_graphs = False
        if not hasattr(self._engine, "create_runtime_config"):
            return None, None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._options.graphs and hasattr(self._trt, "CudaGraphStrategy"):
            # TensorRT-RTX swaps kernels while it runs, which a graph of ours would freeze.
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.own_graphs = True
        if self._kernels is None or not hasattr(config, "create_runtime_cache"):
            return config, None
        cache = config.create_runtime_cache()
        saved = self._kernels.load()
        if saved is not None and not cache.deserialize(saved):
            log.warning("%s is for another GPU, driver or version: not used", self._kernels.path)
        config.set_runtime_cache(cache)
        return config, cache

    def _keep_kernels(self, shape: tuple[int, ...]) -> None:
        """After the first inference of a shape, the only one that may have compiled something."""
        if self._cache is None or self._kernels is None or shape in self._ran:
            return
        with self._changed:
            if shape in self._ran or self._cache is None:
                return
            self._ran.add(shape)
            with self.cuda.current():
                self._kernels.save(bytes(self._cache.serialize()))

    def _read_io(self) -> None:
        engine, inputs = self._engine, self._trt.TensorIOMode.INPUT
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        specs: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for name in names:
            kind = str(engine.get_tensor_dtype(name).name)
            specs[engine.get_tensor_mode(name) == inputs].append(
                TensorSpec(
                    name=name,
                    dtype=DTYPES.get(kind, kind),
                    shape=tuple("?" if n < 0 else int(n) for n in engine.get_tensor_shape(name)),
                )
            )
        self.inputs, self.outputs = tuple(specs[True]), tuple(specs[False])
        ranks = [len(spec.shape) for spec in self.inputs]
        makes = {len(spec.shape) for spec in self.outputs}
        known = all(spec.dtype in DTYPES.values() for spec in (*self.inputs, *self.outputs))
        if ranks != [4] or not makes or not makes <= {2, 4} or not known:
            found = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}"
                              for spec in (*self.inputs, *self.outputs))  # fmt: skip
            raise ArtifactError(
                "expected an engine from images to vectors (N, C) and maps (N, C, H, W), got "
                f"{found}"
            )
        self.input_name, self.input_dtype = self.inputs[0].name, self.inputs[0].dtype
        self._layout = layout_of_type(self.input_dtype)

    def _read_profiles(self) -> tuple[Profile, ...]:
        engine, found = self._engine, []
        for index in range(engine.num_optimization_profiles):
            shapes = engine.get_tensor_profile_shape(self.input_name, index)
            low, middle, high = (self._layout.dims(tuple(shape)) for shape in shapes)
            found.append(Profile(minimum=low, optimum=middle, maximum=high))
        return tuple(found)

    def _profile(self, shape: tuple[int, ...]) -> int:
        dims = self._layout.dims(shape)
        if dims[1] != 3:
            raise ShapeError(f"got images of shape {shape}; expected {self._layout.words}")
        return profile_for(self.profiles, dims)

    def _on_a_lane(self, work: Callable[[Lane], T]) -> T:
        """`work` with a lane of its own; where memory runs out, on one of fewer lanes."""
        while True:
            try:
                with self._lane() as lane:
                    return work(lane)
            except DeviceMemoryError as error:
                if not self._do_with_fewer(error):
                    raise

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane of one's own, with the GPU current. One that failed is not used again."""
        lane = self._take()
        try:
            with self.cuda.current():
                yield lane
        except InputError:  # refused before anything was enqueued
            self._give(lane)
            raise
        except BaseException:
            with self._changed:
                self._lanes.remove(lane)
                self._changed.notify_all()
            lane.close()
            raise
        self._give(lane)

    def _take(self) -> Lane:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._idle or self._count() < self._limit
            )
            if self._closed:
                raise InputError("the session is closed")
            if self._idle:
                return self._idle.pop()
            self._making += 1
        lane = None
        try:
            with self.cuda.current():
                lane = Lane(self, self._options.graphs)
        finally:
            with self._changed:
                self._making -= 1
                if lane is not None:
                    self._lanes.append(lane)
                self._changed.notify_all()
        return lane

    def _do_with_fewer(self, error: DeviceMemoryError) -> bool:
        """There is no memory for one lane more: whether those that are there can go on alone."""
        with self._changed:
            left = self._count()
            if left == 0:
                return False
            if left < self._limit:
                self._limit = left
                log.warning("no memory for more than %d contexts at once: %s", left, error.message)
            return True

    def _count(self) -> int:
        return len(self._lanes) + self._making

    def _give(self, lane: Lane) -> None:
        with self._changed:
            self._idle.append(lane)
            self._changed.notify_all()
