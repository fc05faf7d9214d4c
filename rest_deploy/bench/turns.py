"""One engine at one input: warm-up, and its turn in a round, timed run by run.

Timed is the call alone, host arrays in and out; what is done with the answer comes after the second
reading of the clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rest_deploy.bench.answers import Answer, Answers, batches
from rest_deploy.bench.plan import INPUTS, Plan, Point
from rest_deploy.bench.statistics import median
from rest_deploy.bench.stopping import Stop, steady
from rest_deploy.bench.timers import Clock, Engine, asked, device_timer, feed_of, input_kind
from rest_deploy.preprocess import load_image, to_input
from rest_deploy.runtime.execution import DeviceTimes

Float32 = npt.NDArray[np.float32]
Answered = tuple[Answer, DeviceTimes | None]

MOST_RUNS = 1000
"""In one turn, of an engine however fast."""

LEAST_WARMUP = 0.2
"""Seconds, as trtexec: of a fast engine ten steady runs are over before a clock has risen."""

LONG = 10
"""Blocks that a single run takes where what the caches hold before it no longer matters."""

PARTS = ("h2d", "compute", "d2h", "enqueue")


def _unopened(_: int) -> Answered:
    raise ValueError("no engine was opened")


@dataclass
class Turns:
    """Times of one engine at one point, in ms and in order of time.

    rounds: one value a turn, ms for one request: the median of its runs; saturated: wall time for
    each. finished, wall: of saturated turns, requests and the seconds they took at full load.
    busy: seconds of the samples. running, harness: seconds of turns that were inference, counted or
    not, and that were not. settled: whether the warm-ups ended with steady times. judged: samples
    when a stopping rule was last asked. instances: of the engine so far; earlier: samples, rounds
    and seconds of those before the one that runs.
    """

    label: str
    point: Point
    answers: Answers
    clock: Clock
    samples: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    device: dict[str, list[float]] = field(default_factory=dict)
    finished: int = 0
    wall: float = 0.0
    busy: float = 0.0
    running: float = 0.0
    harness: float = 0.0
    settled: bool = False
    judged: int = 0
    stop: Stop | None = None
    instances: int = 0
    earlier: tuple[int, int, float] = (0, 0, 0.0)
    call: Callable[[int], Answered] = _unopened

    def prepare(
        self, call: Callable[[int], Answered], plan: Plan, pool: ThreadPoolExecutor | None
    ) -> None:
        """Go on with an instance of the engine, whose answers must be those of the first. Answer
        every input once, then warm up until the times are steady or the time is over; with a pool,
        also a turn of it, in which a GPU's further lanes are made.

        Raises what the engine raises, and `WrongAnswer`.
        """
        self.call, self.stop, self.judged = call, None, 0
        self.earlier = (len(self.samples), len(self.rounds), self.busy)
        for index in range(INPUTS):
            if self.instances == 0:
                self.answers.first(index, self.call(index)[0])
            else:
                self.answers.check(index, self.call(index)[0])
        self.instances += 1
        self.answers.depend_on_images()
        running = self.running
        times: list[float] = []
        while True:
            times.append(self._run(len(times), keep=False))
            calm = steady(times)
            spent = sum(times) / 1e3
            # The least: a TensorRT lane captures its graph in the second run of a shape.
            if len(times) >= 2 and (
                spent >= plan.warmup_seconds or (calm and spent >= LEAST_WARMUP)
            ):
                break
        self.settled = calm and (self.settled or self.instances == 1)
        self.running = running
        if pool is not None:
            self._overlapping(plan, pool)

    def turn(self, plan: Plan, pool: ThreadPoolExecutor | None) -> None:
        """Run once without counting, since the caches are another engine's, then a block of runs;
        with a pool, as many requests at once as the point says.

        Raises what the engine raises, and `WrongAnswer`.
        """
        if pool is None:
            block_ms = plan.block_seconds * 1e3
            if not self.samples or self.samples[-1] < LONG * block_ms:
                self._run(0, keep=False)
            self._alone(block_ms)
        else:
            self._together(plan, pool)

    def _alone(self, block_ms: float) -> None:
        before, spent = len(self.samples), 0.0
        for index in range(MOST_RUNS):
            spent += self._run(index)
            if spent >= block_ms:
                break
        self.busy += spent / 1e3
        self.rounds.append(median(sorted(self.samples[before:])))

    def _run(self, index: int, *, keep: bool = True) -> float:
        index %= INPUTS
        started = self.clock()
        answer, times = self.call(index)
        spent = (self.clock() - started) / 1e6
        self.running += spent / 1e3
        self.answers.check(index, answer)
        if keep:
            self.samples.append(spent)
            if times is not None:
                for part in PARTS:
                    self.device.setdefault(part, []).append(getattr(times, part))
        return spent

    def _together(self, plan: Plan, pool: ThreadPoolExecutor) -> None:
        done = self._overlapping(plan, pool)
        count, seconds = full_load(done)
        self.finished += count
        self.wall += seconds
        spans = sorted((end, end - start) for worker in done for start, end in worker)
        self.samples += [span / 1e6 for _, span in spans]
        self.busy += (max(end for end, _ in spans) - min(w[0][0] for w in done)) / 1e9
        self.rounds.append(seconds / count * 1e3)

    def _overlapping(self, plan: Plan, pool: ThreadPoolExecutor) -> list[list[tuple[int, int]]]:
        """`in_flight` threads, each with its next request as soon as it has an answer; (start, end)
        in ns of the requests of each. The first request of each is not counted."""
        flying = self.point.in_flight
        barrier = threading.Barrier(flying)
        over = threading.Event()
        least = 3

        def work(worker: int) -> list[tuple[int, int]]:
            found: list[tuple[int, int]] = []
            try:
                self.answers.check(worker % INPUTS, self.call(worker % INPUTS)[0])
                barrier.wait()
                end = self.clock() + round(plan.saturated_seconds * 1e9)
                while not over.is_set() and (self.clock() < end or len(found) < least):
                    index = (worker + len(found)) % INPUTS
                    started = self.clock()
                    answer, _ = self.call(index)
                    found.append((started, self.clock()))
                    self.answers.check(index, answer)
            except BaseException:
                over.set()  # the others must not go on, nor wait for this one
                barrier.abort()
                raise
            return found

        pending = [pool.submit(work, worker) for worker in range(flying)]
        failures = [error for future in pending if (error := future.exception()) is not None]
        if failures:
            # Others then fail for the broken barrier: that is not the reason.
            real = [e for e in failures if not isinstance(e, threading.BrokenBarrierError)]
            raise (real or failures)[0]
        return [future.result() for future in pending]

    def images_per_second(self) -> float:
        """Over all turns: of requests one after another their own time, saturated wall time."""
        if self.point.mode == "saturated":
            return self.point.batch * self.finished / self.wall
        return self.point.batch * len(self.samples) / self.busy


def full_load(workers: Sequence[Sequence[tuple[int, int]]]) -> tuple[int, float]:
    """(start, end) in ns of each worker's requests -> requests finished and seconds, while all
    workers were at work: from the first moment that each had one answer until the first of them
    made no further request. Beginning and end, with fewer in flight, would make the throughput
    look lower. Where no such time is left, all requests and the whole time count.
    """
    begin = max(worker[0][1] for worker in workers)
    end = min(worker[-1][1] for worker in workers)
    ends = sorted(e for worker in workers for _, e in worker if begin <= e <= end)
    if len(ends) > len(workers) and ends[-1] > ends[0]:
        return len(ends) - 1, (ends[-1] - ends[0]) / 1e9
    first = min(worker[0][0] for worker in workers)
    last = max(worker[-1][1] for worker in workers)
    return sum(map(len, workers)), (last - first) / 1e9


def inputs_at(point: Point, plan: Plan) -> Sequence[Float32]:
    """What all engines get at a point: the same arrays, since where one lies in memory can make a
    difference of a percent. Empty for end-to-end, which begins with pixels."""
    if point.mode == "end-to-end":
        return ()
    count = INPUTS * point.batch
    return batches(plan.images(count, point.height, point.width), point.batch)


def caller(
    engine: Engine, point: Point, plan: Plan, inputs: Sequence[Float32]
) -> Callable[[int], Answered]:
    """Input number -> the engine's answer, by way of what the mode includes."""
    timed, ask = device_timer(engine), asked(engine)
    if point.mode != "end-to-end":
        taken = [feed_of(engine, images) for images in inputs]
        if timed is not None:
            device = timed
            return lambda index: device(taken[index])
        return lambda index: (ask(taken[index]), None)
    preprocessing, photos = plan.preprocessing, plan.photos
    if preprocessing is None:
        raise ValueError("end-to-end needs the model's preprocessing")
    known, size, kind = preprocessing, (point.height, point.width), input_kind(engine)

    def from_pixels(index: int) -> Answered:
        first = index * point.batch
        chosen = (photos[(first + offset) % len(photos)] for offset in range(point.batch))
        tensors = [to_input(load_image(photo), kind, known, size) for photo in chosen]
        return ask(np.stack(tensors)), None

    return from_pixels
