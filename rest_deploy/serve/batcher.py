"""Many callers, one engine: requests of equal shape are put together and computed at once.

Threads alone, no event loop. An engine computes one batch at a time (`instances`); meanwhile the
next is put together, as soon as it is full. A batch that is not full starts when the engine is
idle: at once, unless the callers seen lately say that more are on their way, then `max_delay`
later at most. So a single caller never waits for others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Generic

import numpy as np

from rest_deploy.errors import InvariantError, ShapeError
from rest_deploy.serve.pending import (
    Answer,
    BatchLimits,
    Closed,
    E,
    Engine,
    Float32,
    Full,
    Images,
    NotFinite,
    Queue,
    Request,
    Shape,
    fail,
    oldest,
    together,
    wanted,
)

log = logging.getLogger(__name__)

RECENT = 4
"""Batches that say how many callers there are."""

SHAPES_REMEMBERED = 16


class Batcher(Generic[E]):
    """Thread-safe. Every request that `submit` takes gets exactly one answer or error."""

    def __init__(
        self,
        engine: E,
        limits: BatchLimits,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        """observe: called after each batch with its images and seconds, from several threads."""
        self.limits = limits
        self._engine = engine
        self._observe = observe
        self._waiting: dict[Shape, Queue[E]] = {}
        self._images = 0  # that wait
        self._first_deadline = math.inf  # of those that wait, or earlier
        self._busy: Counter[Shape] = Counter()  # images taken, not yet computed
        self._taken = 0  # batches taken, not yet computed
        self._callers: OrderedDict[Shape, deque[int]] = OrderedDict()
        self._seconds_per_image = 0.0
        self._using: Counter[int] = Counter()
        self._closed = False
        self._changed = threading.Condition()
        self._slots = threading.Semaphore(limits.instances)
        self._threads = [
            threading.Thread(target=self._work, name=f"rest-deploy-batch-{index}", daemon=True)
            for index in range(limits.instances + 1)  # one puts together while the others compute
        ]
        for thread in self._threads:
            thread.start()

    @property
    def engine(self) -> E:
        return self._engine

    @property
    def depth(self) -> int:
        """Images that wait."""
        return self._images

    @property
    def backlog_seconds(self) -> float:
        """About how long it takes until what waits now is computed, 0 as long as nothing was."""
        return self._images * self._seconds_per_image / self.limits.instances

    def submit(
        self,
        images: Images,
        deadline: float | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Future[Answer[E]]:
        """images: k of them. deadline: of `time.monotonic()`; a request that is not being computed
        by then is dropped and gets `Expired`. So is one whose future is cancelled. names: of the
        outputs wanted, None for all; requests for other outputs share a batch.

        Raises `ShapeError` for more images than fit one call, `Full`, `Closed`.
        """
        most = self.limits.most(images.shape[1:])
        if not 1 <= len(images) <= most:
            raise ShapeError(
                f"{len(images)} images of {'x'.join(map(str, images.shape[1:]))} in one request; "
                f"expected 1 to {most}",
                hint="send them in several requests: they are computed together all the same",
            )
        now = time.monotonic()
        due = math.inf if deadline is None else deadline
        request: Request[E] = Request(images, due, now, names)
        with self._changed:
            if self._closed:
                raise Closed("the service is stopping")
            if self._images + len(request) > self.limits.queue:
                self._sweep(now)
            if self._images + len(request) > self.limits.queue:
                raise Full(f"{self._images} images wait; expected at most {self.limits.queue}")
            queue = self._waiting.setdefault(request.shape, Queue())
            queue.append(request)
            self._images += len(request)
            sooner = request.deadline < self._first_deadline
            self._first_deadline = min(self._first_deadline, request.deadline)
            # Threads that could do nothing with it are left asleep.
            if sooner or self._taken < self.limits.instances or queue.images >= most:
                self._changed.notify_all()
        return request.future

    def swap(self, engine: E) -> E:
        """Serve with another engine from the next batch on. Returns the old one as soon as no
        batch uses it any more."""
        with self._changed:
            old, self._engine = self._engine, engine
            while self._using[id(old)]:
                self._changed.wait()
            del self._using[id(old)]
        return old

    def close(self, *, drain: bool = True) -> None:
        """Take no more; compute what waits (drain) or answer it with `Closed`. Returns when that is
        done."""
        with self._changed:
            self._closed = True
            if not drain:
                for request in self._take_all():
                    fail(request, Closed("the service stopped before it came to this request"))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # --- what is computed next: all of these hold the lock ------------------------------------

    def _next(self) -> list[Request[E]] | None:
        """Wait for a batch; None when there will be no more."""
        with self._changed:
            while True:
                now = time.monotonic()
                if now >= self._first_deadline:
                    self._sweep(now)
                shape, due = self._choose(now)
                if shape is not None:
                    return self._take(shape)
                if self._closed and not self._waiting:
                    self._changed.notify_all()
                    return None
                self._changed.wait(None if due == math.inf else max(0.0, due - now))

    def _choose(self, now: float) -> tuple[Shape | None, float]:
        """The shape to compute now, the one waiting longest first; or when to look again."""
        due = self._first_deadline
        for shape, queue in sorted(self._waiting.items(), key=oldest):
            most = self.limits.most(shape)
            if queue.images >= most:
                return shape, due
            if self._taken >= self.limits.instances:
                continue  # it may still grow while the engine is busy
            start = queue.requests[0].arrived + self.limits.max_delay
            callers = max(self._callers.get(shape, ()), default=0)
            expected = min(most, callers - self._busy[shape])
            if self._closed or queue.images >= expected or now >= start:
                return shape, due
            due = min(due, start)
        return None, due

    def _take(self, shape: Shape) -> list[Request[E]]:
        queue = self._waiting[shape]
        seen = self._callers.setdefault(shape, deque(maxlen=RECENT))
        seen.append(queue.images + self._busy[shape])
        self._callers.move_to_end(shape)
        if len(self._callers) > SHAPES_REMEMBERED:
            self._callers.popitem(last=False)
        batch: list[Request[E]] = []
        images, most = 0, self.limits.most(shape)
        while queue.requests and images + len(queue.requests[0]) <= most:
            batch.append(queue.popleft())
            images += len(batch[-1])
        if not queue.requests:
            del self._waiting[shape]
        self._images -= images
        self._busy[shape] += images
        self._taken += 1
        if self._waiting:
            self._changed.notify_all()  # there may be a full batch for another thread
        return batch

    def _sweep(self, now: float) -> None:
        """Drop what has expired or was cancelled."""
        self._first_deadline = math.inf
        for shape, queue in list(self._waiting.items()):
            kept: Queue[E] = Queue()
            for request in queue.requests:
                if wanted(request, now):
                    kept.append(request)
                    self._first_deadline = min(self._first_deadline, request.deadline)
            self._images -= queue.images - kept.images
            if kept.requests:
                self._waiting[shape] = kept
            else:
                del self._waiting[shape]

    def _take_all(self) -> list[Request[E]]:
        found = [request for queue in self._waiting.values() for request in queue.requests]
        self._waiting.clear()
        self._images = 0
        return found

    # --- computing: without the lock -----------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._compute(batch)

    def _compute(self, taken: list[Request[E]]) -> None:
        images = together(taken)
        with self._slots:
            begun = time.monotonic()
            batch = [
                request
                for request in taken
                if wanted(request, begun) and request.future.set_running_or_notify_cancel()
            ]
            if len(batch) != len(taken):
                images = together(batch)
            with self._changed:
                engine = self._engine
                self._using[id(engine)] += 1
            found = _run(engine, images) if batch else None
            seconds = time.monotonic() - begun
        with self._changed:
            self._using[id(engine)] -= 1
            self._busy[taken[0].shape] -= sum(map(len, taken))
            self._busy += Counter()  # keeps what is above 0
            self._taken -= 1
            if batch:
                recent = seconds / sum(map(len, batch))
                known = self._seconds_per_image
                self._seconds_per_image = 0.9 * known + 0.1 * recent if known else recent
            self._changed.notify_all()
        if found is not None:
            # Counted first: whoever has an answer finds it in the figures.
            self._tell(sum(map(len, batch)), seconds)
            _answer(batch, found, engine, begun, seconds)

    def _tell(self, images: int, seconds: float) -> None:
        if self._observe is None:
            return
        try:
            self._observe(images, seconds)
        except Exception:
            log.exception("the batch was answered, but not counted")


def _answer(
    batch: list[Request[E]],
    found: Mapping[str, Float32] | Exception,
    engine: E,
    begun: float,
    seconds: float,
) -> None:
    """Hand out the rows of one batch, or its error."""
    images, first = sum(map(len, batch)), 0
    for request in batch:
        if isinstance(found, Exception):
            request.future.set_exception(found)
            continue
        names = found if request.names is None else request.names
        last = first + len(request)
        rows = {name: found[name][first:last] for name in names if name in found}
        first = last
        if len(rows) < len(names):  # the engine was changed meanwhile for one with others
            lost = ", ".join(name for name in names if name not in found)
            request.future.set_exception(InvariantError(f"the engine gives no {lost} any more"))
        elif all(np.isfinite(values).all() for values in rows.values()):
            queued = begun - request.arrived
            request.future.set_result(Answer(rows, engine, queued, seconds, images))
        else:
            request.future.set_exception(NotFinite("the engine returned NaN or infinity"))


def _run(engine: Engine, images: Images | Exception) -> Mapping[str, Float32] | Exception:
    if isinstance(images, Exception):
        return images
    try:
        found = engine.run_all(images)
    except Exception as error:  # noqa: BLE001  # handed to those who asked
        return error
    for name, values in found.items():
        if values.ndim < 2 or len(values) != len(images):
            return InvariantError(f"{len(images)} images gave {name!r} of {values.shape}")
    return found
