"""A dynamic model, and beside it compilations of it for the shapes that come often.

OpenVINO computes a fixed shape faster than the same shape in a model of any shape. The dynamic
model serves from the first request on; a shape that has come often enough is compiled in a thread
of its own, and that serves from the moment it is ready. Both compute the same graph; their answers
differ by rounding.

Not for ONNX Runtime: fixed dimensions gain nothing there (docs/openvino.md).
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Dims, Runner
from rest_deploy.errors import InputError

log = logging.getLogger(__name__)

MOST = 4
"""Shapes compiled at a time: weights and buffers are there once more for each."""

AFTER = 3
"""Requests of one shape before it is compiled: one-off shapes never are."""

REMEMBERED = 64
"""Shapes whose requests are counted."""

STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class ShapeLimits:
    """most: shapes kept compiled, 0 for none. after: requests before one is, 0 for `warm_up`'s
    alone. most_bytes: memory of all of them, None for no limit; as far as the system tells
    (Linux)."""

    most: int = MOST
    after: int = AFTER
    most_bytes: int | None = None

    def __post_init__(self) -> None:
        if min(self.most, self.after) < 0 or (self.most_bytes is not None and self.most_bytes < 1):
            raise InputError(f"expected most >= 0, after >= 0, most_bytes > 0, got {self}")


DEFAULT_LIMITS = ShapeLimits()
NEVER = ShapeLimits(most=0)


class ShapePolicy:
    """Which shapes to compile, and which to let go: the one used least recently.

    A full house takes a new shape only when that came `after` times since the one it replaces was
    last used: shapes in turn, more of them than there is room for, would otherwise be compiled for
    ever. Not thread-safe.
    """

    def __init__(self, limits: ShapeLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._now = 0
        self._asked: OrderedDict[Dims, deque[int]] = OrderedDict()
        self._used: OrderedDict[Dims, int] = OrderedDict()
        self._bytes: dict[Dims, int] = {}
        self._refused: set[Dims] = set()

    @property
    def kept(self) -> tuple[Dims, ...]:
        """Shapes that are compiled, the one used last at the end."""
        return tuple(self._used)

    def asked(self, shape: Dims) -> bool:
        """A request of that shape has come; returns whether to compile it now."""
        self._now += 1
        if shape in self._used:
            self._used[shape] = self._now
            self._used.move_to_end(shape)
            return False
        if shape in self._refused or not (self.limits.most and self.limits.after):
            return False
        times = self._asked.setdefault(shape, deque(maxlen=self.limits.after))
        times.append(self._now)
        self._asked.move_to_end(shape)
        if len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
        if len(times) < self.limits.after:
            return False
        return len(self._used) < self.limits.most or times[0] > next(iter(self._used.values()))

    def keep(self, shape: Dims, size: int) -> tuple[Dims, ...]:
        """It is compiled and takes about `size` bytes; returns the shapes to let go, itself where
        it alone is too large."""
        most = self.limits.most_bytes
        if most is not None and size > most:
            self.refuse(shape)
            return (shape,)
        self._asked.pop(shape, None)
        self._used[shape], self._bytes[shape] = self._now, size
        self._used.move_to_end(shape)
        gone: list[Dims] = []
        while len(self._used) > self.limits.most or sum(self._bytes.values()) > (most or math.inf):
            oldest, _ = self._used.popitem(last=False)
            del self._bytes[oldest]
            gone.append(oldest)
        return tuple(gone)

    def refuse(self, shape: Dims) -> None:
        """Never compile it again: it failed, or is too large."""
        self._asked.pop(shape, None)
        self._refused.add(shape)


class SpecializingRunner:
    """A runner that serves each shape from its own compilation where there is one.

    No request waits for a compilation. Thread-safe.
    """

    def __init__(
        self,
        dynamic: Runner,
        compiled: Callable[[Dims], Runner],
        limits: ShapeLimits = DEFAULT_LIMITS,
    ) -> None:
        """compiled: makes the runner for one shape of the input."""
        self.dynamic = dynamic
        self.backend, self.inputs, self.outputs = dynamic.backend, dynamic.inputs, dynamic.outputs
        self._compiled = compiled
        self._policy = ShapePolicy(limits)
        self._ready: dict[Dims, Runner] = {}
        self._reasons: dict[Dims, str] = {}
        self._waiting: deque[Dims] = deque()
        self._lock = threading.Lock()
        self._compiling = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def shapes(self) -> tuple[Dims, ...]:
        """Those that have a compilation of their own now."""
        with self._lock:
            return tuple(self._ready)

    @property
    def failures(self) -> dict[Dims, str]:
        """Shapes that could not be compiled, and why; the dynamic model serves them."""
        with self._lock:
            return dict(self._reasons)

    def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        shape = _dims(feeds[self.inputs[0].name])
        with self._lock:
            if self._policy.asked(shape) and shape not in self._waiting and not self._closed:
                self._waiting.append(shape)
                self._start()
            runner = self._ready.get(shape, self.dynamic)
        # Whoever lets this shape go drops it from `_ready` only: a request that has it keeps it.
        return runner.infer(feeds)

    def warm_up(self, shapes: Iterable[Dims]) -> None:
        """Compile for these now and wait for it; other threads' requests go on meanwhile.

        Raises `InputError` for more shapes, or memory, than is kept, and what compiling raises.
        """
        wanted = list(dict.fromkeys(shapes))
        most = self._policy.limits.most
        if len(wanted) > most:
            raise InputError(
                f"{len(wanted)} shapes to warm up; this session keeps {most}",
                hint=f"Session.open(..., specialize=ShapeLimits(most={len(wanted)}))",
            )
        for shape in wanted:
            with self._compiling:
                if shape not in self.shapes:
                    self._make(shape)
        lost = [_words(shape) for shape in wanted if shape not in self.shapes]
        if lost:
            raise InputError(
                f"{', '.join(lost)} had to go again: all of them are larger than most_bytes",
                hint="warm up fewer shapes, or let them have more memory",
            )

    def wait(self) -> None:
        """Until the compilations that are due are done."""
        while True:
            with self._lock:
                thread = self._thread
            if thread is None or not thread.is_alive():
                return
            thread.join()

    def close(self) -> None:
        """Wait for the compilation that runs, drop those that wait, close every runner."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self.wait()
        with self._lock:
            gone = [*self._ready.values(), self.dynamic]
            self._ready.clear()
        for runner in gone:
            runner.close()

    def _start(self) -> None:
        """The thread lives while there is something to compile. Holds the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rest-deploy-specialize")
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                shape = self._waiting[0]
            try:
                with self._compiling:
                    if shape not in self.shapes:
                        self._make(shape)
            except Exception as error:  # noqa: BLE001  # nobody waits for it: it is told once
                with self._lock:
                    self._policy.refuse(shape)
                    self._reasons[shape] = str(error)
                log.warning("%s is not compiled for itself: %s", _words(shape), error)
            finally:
                with self._lock:
                    if self._waiting and self._waiting[0] == shape:
                        self._waiting.popleft()

    def _make(self, shape: Dims) -> None:
        """Compile, run once so that its memory is there, and let it serve."""
        before = _resident()
        runner = self._compiled(shape)
        spec = self.inputs[0]
        runner.infer({spec.name: np.zeros(shape, spec.dtype)})
        size = max(0, _resident() - before)
        with self._lock:
            if self._closed:
                runner.close()
                return
            self._ready[shape] = runner
            for gone in self._policy.keep(shape, size):
                del self._ready[gone]
            if shape not in self._ready:
                self._reasons[shape] = f"it takes about {size / 1e6:.0f} MB, more than all may"


def _dims(array: npt.NDArray[np.generic]) -> Dims:
    batch, channels, height, width = array.shape
    return batch, channels, height, width


def _words(shape: Dims) -> str:
    return "x".join(map(str, shape))


def _resident() -> int:
    """Bytes of memory this process has, 0 where the system does not tell. Other threads' come and
    go too: a difference is an estimate."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
