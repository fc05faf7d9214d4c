"""One lane of execution: a stream, its buffers, and the TensorRT contexts that run on it.

A lane is used by one thread at a time. All of its contexts work in the same scratch memory, which
is safe because one stream orders them. CUDA graphs fix the shape, the addresses and the context
they were captured from, so each captured shape has a context of its own, as NVIDIA advises.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Dims, TensorSpec
from rest_deploy.errors import DeviceError
from rest_deploy.runtime.cuda import Cuda, DeviceBuffer, PinnedBuffer, released

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]

log = logging.getLogger(__name__)

HALVE_AFTER = 4096
"""Runs after which the counts of shapes are halved: what was frequent once must not stay so."""


class Engine(Protocol):
    """What lanes share: the deserialized engine."""

    cuda: Cuda
    input_name: str
    input_dtype: str
    outputs: tuple[TensorSpec, ...]
    own_graphs: bool
    """Whether TensorRT is left to capture graphs by itself, as TensorRT-RTX does."""

    def create_context(self) -> Any:
        """An IExecutionContext that takes its scratch memory from the caller."""

    def scratch_bytes(self, profile: int) -> int: ...

    def refused(self, what: str) -> DeviceError:
        """The error for a call that TensorRT answered with False, with its own words."""


@dataclass(frozen=True)
class DeviceTimes:
    """Of one inference, in ms, as trtexec names them. h2d, compute, d2h: between events on the
    stream, so on the GPU's own clock. enqueue: the host's, until everything was handed over."""

    h2d: float
    compute: float
    d2h: float
    enqueue: float


@dataclass(frozen=True)
class Shaped:
    """What an output is like at one input shape. `size`: bytes."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass
class Captured:
    """A graph, and what it was captured from; both live as long as it is launched."""

    graph: int
    context: Any


class Lane:
    """See the module. `graphs`: most CUDA graphs to keep; 0: none."""

    def __init__(self, engine: Engine, graphs: int) -> None:
        self._engine = engine
        self._cuda = engine.cuda
        self._most = 0 if engine.own_graphs else graphs
        self.stream = self._cuda.create_stream()
        self._input, self._scratch = DeviceBuffer(self._cuda), DeviceBuffer(self._cuda)
        self._host_in = PinnedBuffer(self._cuda)
        names = [spec.name for spec in engine.outputs]
        self._outputs = {name: DeviceBuffer(self._cuda) for name in names}
        self._host_out = {name: PinnedBuffer(self._cuda) for name in names}
        self._contexts: dict[int, Any] = {}
        self._captured: OrderedDict[Dims, Captured] = OrderedDict()
        self._seen: Counter[Dims] = Counter()
        self._runs = 0
        self._events: tuple[int, ...] = ()
        self._enqueue_ms = 0.0
        self._held: deque[tuple[Callable[[], bool], object]] = deque()
        self.uncapturable: dict[Dims, str] = {}
        """Shapes whose graph could not be captured, and why; they run without one."""

    @property
    def captured(self) -> tuple[Dims, ...]:
        """Shapes that run as a CUDA graph."""
        return tuple(self._captured)

    @property
    def device_bytes(self) -> int:
        """Device memory this lane holds."""
        outputs = sum(buffer.size for buffer in self._outputs.values())
        return self._input.size + outputs + self._scratch.size

    def run(self, profile: int, images: Array) -> Arrays:
        """images: of the engine's input type and layout, on the host -> the outputs by name,
        likewise.

        Raises `DeviceError`; the lane is not to be used again then.
        """
        return self._run(profile, images, ())

    def run_timed(self, profile: int, images: Array) -> tuple[Arrays, DeviceTimes]:
        """`run`, with an event before and after each of its three parts."""
        if not self._events:
            self._events = tuple(self._cuda.create_event() for _ in range(4))
        answer = self._run(profile, images, self._events)
        pairs = zip(self._events, self._events[1:], strict=False)
        h2d, compute, d2h = (self._cuda.elapsed_ms(start, end) for start, end in pairs)
        return answer, DeviceTimes(h2d, compute, d2h, self._enqueue_ms)

    def _run(self, profile: int, images: Array, events: tuple[int, ...]) -> Arrays:
        shape: Dims = images.shape
        self._reserve(profile, images.nbytes)
        captured = self._captured.get(shape)
        context = captured.context if captured else self._context(profile)
        if captured is None:
            self._shape(context, profile, shape)
        made = self._output_shapes(context)
        if captured is None:  # a graph's outputs fit where they were when it was captured
            self._reserve_outputs(made)
            self._address(context, self._input.pointer, self._own_outputs())
        np.copyto(self._host_in.array(shape, self._engine.input_dtype), images)
        cuda, stream = self._cuda, self.stream
        marks = iter(events)
        started = time.perf_counter_ns()
        self._mark(marks)
        cuda.copy_in(self._input.pointer, self._host_in.pointer, images.nbytes, stream)
        self._mark(marks)
        if captured is None:
            self._enqueue(context)
        else:
            cuda.launch(captured.graph, stream)
            self._captured.move_to_end(shape)
        self._mark(marks)
        for name, one in made.items():
            target, source = self._host_out[name], self._outputs[name]
            cuda.copy_out(target.pointer, source.pointer, one.size, stream)
        self._mark(marks)
        self._enqueue_ms = (time.perf_counter_ns() - started) / 1e6
        cuda.synchronize(stream)
        result = {
            name: self._host_out[name].array(one.shape, one.dtype).copy()
            for name, one in made.items()
        }
        self._count(shape)
        if captured is None and self._worth_capturing(shape):
            self._capture(profile, shape)
        return result

    def output_shapes(self, profile: int, shape: Dims) -> dict[str, Shaped]:
        """What the outputs will be like for that input. Raises `DeviceError`."""
        self._reserve(profile, 0)
        context = self._context(profile)
        self._shape(context, profile, shape)
        return self._output_shapes(context)

    def enqueue(self, profile: int, shape: Dims, source: int, targets: Mapping[str, int]) -> None:
        """One inference from device memory to device memory, an address for each output, without a
        copy and without a graph, which would fix the addresses. Returns before it is done. Raises
        `DeviceError`."""
        self._reserve(profile, 0)
        context = self._context(profile)
        self._shape(context, profile, shape)
        self._address(context, source, targets)
        self._enqueue(context)

    def hold(self, over: Callable[[], bool], what: object) -> None:
        """Keep what enqueued work uses until it is over. From any thread."""
        self._held.append((over, what))

    def drop_finished(self) -> None:
        """Let go of what was held for work that is over."""
        for _ in range(len(self._held)):  # `hold` may append meanwhile
            over, what = self._held.popleft()
            if not over():
                self._held.append((over, what))

    def order(self, first: int, second: int) -> None:
        """Later work of the second stream waits for what is on the first now."""
        event = self._cuda.create_event()
        try:
            self._cuda.record(event, first)
            self._cuda.wait(second, event)
        finally:
            self._cuda.destroy_event(event)  # CUDA keeps it until it has happened

    def close(self) -> None:
        """Give everything back, once its work is done."""
        with released(self._cuda):
            self._cuda.synchronize(self.stream)
        self._held.clear()
        self._drop_graphs()
        self._contexts.clear()
        for buffer in (self._input, self._scratch, *self._outputs.values()):
            buffer.close()
        for pinned in (self._host_in, *self._host_out.values()):
            pinned.close()
        events, self._events = self._events, ()
        for event in events:
            with released(self._cuda):
                self._cuda.destroy_event(event)
        with released(self._cuda):
            self._cuda.destroy_stream(self.stream)

    def _reserve(self, profile: int, in_bytes: int) -> None:
        """Input and scratch memory for one run. Graphs hold the old addresses, so they go where it
        moves."""
        scratch = self._engine.scratch_bytes(profile)
        moved = [self._input.reserve(in_bytes), self._scratch.reserve(scratch)]
        self._host_in.reserve(in_bytes)
        if any(moved):
            self._drop_graphs()

    def _reserve_outputs(self, made: Mapping[str, Shaped]) -> None:
        """Likewise for the outputs, whose shapes a context tells."""
        moved = [self._outputs[name].reserve(one.size) for name, one in made.items()]
        for name, one in made.items():
            self._host_out[name].reserve(one.size)
        if any(moved):
            self._drop_graphs()

    def _own_outputs(self) -> dict[str, int]:
        return {name: buffer.pointer for name, buffer in self._outputs.items()}

    def _output_shapes(self, context: Any) -> dict[str, Shaped]:
        return {
            spec.name: Shaped(tuple(map(int, context.get_tensor_shape(spec.name))), spec.dtype)
            for spec in self._engine.outputs
        }

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            self._contexts[profile] = self._engine.create_context()
        return self._contexts[profile]

    def _shape(self, context: Any, profile: int, shape: Dims) -> None:
        """Tell a context its scratch memory, profile and shape."""
        engine = self._engine
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._scratch.pointer, self._scratch.size)
        else:  # TensorRT before it took the size as well
            context.device_memory = self._scratch.pointer
        if context.active_optimization_profile != profile and not (
            context.set_optimization_profile_async(profile, self.stream)
        ):
            raise engine.refused(f"optimization profile {profile}")
        if not context.set_input_shape(engine.input_name, shape):
            raise engine.refused(f"the input shape {shape}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise engine.refused(f"to infer shapes from {shape}") from error
        if missing:
            raise engine.refused(f"to infer the shapes of {', '.join(missing)}")

    def _address(self, context: Any, source: int, targets: Mapping[str, int]) -> None:
        """Tell a context where the input is and the outputs go."""
        for name, pointer in {self._engine.input_name: source, **targets}.items():
            if not context.set_tensor_address(name, pointer):
                raise self._engine.refused(f"the address of {name}")

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.stream):
            raise self._engine.refused("to enqueue an inference")

    def _mark(self, events: Iterator[int]) -> None:
        """Record the next event, where this run is timed."""
        for event in events:
            self._cuda.record(event, self.stream)
            return

    def _count(self, shape: Dims) -> None:
        self._seen[shape] += 1
        self._runs += 1
        if self._runs % HALVE_AFTER == 0:
            self._seen = Counter({key: n // 2 for key, n in self._seen.items() if n > 1})

    def _worth_capturing(self, shape: Dims) -> bool:
        """The second time a shape comes; with no room left, if it comes twice as often as the one
        that would go: shapes in rotation must not push each other out."""
        if self._most == 0 or self._seen[shape] < 2 or shape in self.uncapturable:
            return False
        if len(self._captured) < self._most:
            return True
        return self._seen[shape] >= 2 * self._seen[next(iter(self._captured))] + 2

    def _capture(self, profile: int, shape: Dims) -> None:
        """Keep a graph of the inference at `shape`. Where CUDA or TensorRT refuses, the shape goes
        on without one; the reason is logged and kept."""
        cuda, engine = self._cuda, self._engine
        try:
            context = engine.create_context()
            self._shape(context, profile, shape)
            self._address(context, self._input.pointer, self._own_outputs())
            # The first enqueue after a change of shape does work that must not be in the graph.
            self._enqueue(context)
            cuda.synchronize(self.stream)
            graph = self._recorded(context)
        except DeviceError as error:
            self.uncapturable[shape] = error.message
            log.warning("%s runs without a CUDA graph: %s", "x".join(map(str, shape)), error)
            return
        while len(self._captured) >= self._most:
            _, old = self._captured.popitem(last=False)
            cuda.destroy_graph(old.graph)
        self._captured[shape] = Captured(graph, context)

    def _recorded(self, context: Any) -> int:
        """One enqueue as a graph. Whatever happens, the stream does not stay capturing. Raises
        `DeviceError`."""
        cuda = self._cuda
        cuda.begin_capture(self.stream)
        accepted, graph = False, 0
        try:
            accepted = context.execute_async_v3(self.stream)
        finally:
            try:
                graph = cuda.end_capture(self.stream)
            except DeviceError:
                if accepted:
                    raise  # else TensorRT's reason is the better one
            if graph and not accepted:
                cuda.destroy_graph(graph)
        if not accepted:
            raise self._engine.refused("to be captured in a CUDA graph")
        return graph

    def _drop_graphs(self) -> None:
        while self._captured:
            _, old = self._captured.popitem()
            with released(self._cuda):
                self._cuda.destroy_graph(old.graph)
