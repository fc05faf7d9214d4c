"""Every request gets one answer, the right one, whatever the engine and the other callers do."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.errors import InputError, InvariantError, ShapeError
from rest_deploy.serve.batcher import Batcher
from rest_deploy.serve.pending import (
    Answer,
    BatchLimits,
    Closed,
    Expired,
    Full,
    NotFinite,
)

Float32 = npt.NDArray[np.float32]
Images = npt.NDArray[np.generic]
WAIT = 20.0
"""Seconds until a test gives up on an answer."""


class Fake:
    """Answers each image with its first value and the number of images it was computed with, and
    with a map of that value.

    It computes when `gate` is open, and keeps the shapes of its batches.
    """

    def __init__(self, name: str = "fake", seconds: float = 0.0) -> None:
        self.name, self.seconds = name, seconds
        self.batches: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def run_all(self, images: Images, /) -> dict[str, Float32]:
        with self._lock:
            self.batches.append(images.shape)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.release()
        assert self.gate.wait(WAIT)
        if self.seconds:
            time.sleep(self.seconds)
        values = images[:, 0, 0, 0].astype(np.float32)
        with self._lock:
            self.at_once -= 1
        if (values == FAILS).any():
            raise ZeroDivisionError("the engine fails")
        logits = np.stack([values, np.full_like(values, len(images))], axis=1)
        sides = images.shape[1:3]
        return {"logits": logits, "map": np.tile(values[:, None, None, None], (1, 5, *sides))}


FAILS = 666.0
NAN = float("nan")


def image(value: float, count: int = 1, side: int = 2) -> Float32:
    return np.full((count, 3, side, side), value, np.float32)


@contextmanager
def batching(engine: Any, **limits: Any) -> Iterator[Batcher[Any]]:
    batcher = Batcher(engine, BatchLimits(**limits))
    try:
        yield batcher
    finally:
        if isinstance(engine, Fake):
            engine.gate.set()
        batcher.close()


def value(future: Future[Answer[Any]]) -> float:
    return float(future.result(WAIT).outputs["logits"][0, 0])


@contextmanager
def busy(engine: Fake, batcher: Batcher[Any]) -> Iterator[None]:
    """The engine computes one request until the block ends."""
    engine.gate.clear()
    future = batcher.submit(image(-1))
    assert engine.begun.acquire(timeout=WAIT)
    try:
        yield
    finally:
        engine.gate.set()
        future.result(WAIT)


def test_one_answer_each_and_the_right_one() -> None:
    """Many callers, shapes and sizes; some cancel, some expire, some fail, some are refused."""
    engine = Fake(seconds=0.0005)
    wrong: list[str] = []
    counts = dict.fromkeys(("answered", "cancelled", "expired", "full", "failed", "nan"), 0)
    lock = threading.Lock()

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def caller(seed: int) -> None:
        dice = random.Random(seed)
        for turn in range(60):
            mine = float(seed * 1000 + turn + 1)
            kind = dice.random()
            sent = FAILS if kind < 0.01 else NAN if kind < 0.05 else mine
            images, side = dice.randint(1, 3), dice.choice([2, 2, 2, 3])
            hurry = kind > 0.9
            deadline = time.monotonic() + dice.choice([0.0, 0.001]) if hurry else None
            try:
                future = batcher.submit(image(sent, images, side), deadline)
            except Full:
                count("full")
                time.sleep(0.001)
                continue
            if 0.8 < kind < 0.85:
                future.cancel()
            try:
                answer = future.result(WAIT)
            except CancelledError:
                count("cancelled")
            except Expired:
                count("expired")
                if not hurry:
                    wrong.append(f"{mine} expired without a deadline")
            except ZeroDivisionError:
                count("failed")
            except NotFinite:
                count("nan")
                if not np.isnan(sent):
                    wrong.append(f"{mine} got the NaN of another")
            else:
                count("answered")
                logits = answer.outputs["logits"]
                if (logits[:, 0] != sent).any() or len(logits) != images:
                    wrong.append(f"{mine} got {logits}")
                if answer.batch != logits[0, 1]:
                    wrong.append(f"{mine} was told a batch of {answer.batch}")

    with batching(engine, max_batch=4, max_delay=0.001, queue=20) as batcher:
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(caller, range(24)))
        assert batcher.depth == 0
    assert wrong == []
    assert sum(counts.values()) == 24 * 60
    assert min(counts.values()) > 0, counts
    assert engine.most_at_once == 1
    assert all(shape[0] <= 4 for shape in engine.batches)
    assert max(shape[0] for shape in engine.batches) == 4


def test_what_waits_is_computed_together_up_to_max_batch() -> None:
    engine = Fake()
    with batching(engine, max_batch=4) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n)) for n in range(10)]
        assert [value(future) for future in futures] == list(range(10))
    assert [shape[0] for shape in engine.batches] == [1, 4, 4, 2]


def test_requests_are_not_cut() -> None:
    engine = Fake()
    with batching(engine, max_batch=4) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n, count=3)) for n in range(3)]
        assert [len(future.result(WAIT).outputs["logits"]) for future in futures] == [3, 3, 3]
    assert [shape[0] for shape in engine.batches] == [1, 3, 3, 3]


def test_shapes_do_not_mix_and_none_starves() -> None:
    engine = Fake()
    with batching(engine, max_batch=4) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n, side=2 + n % 3)) for n in range(12)]
        assert [value(future) for future in futures] == list(range(12))
    assert sorted(engine.batches[1:]) == [(4, 3, 2, 2), (4, 3, 3, 3), (4, 3, 4, 4)]


def test_large_images_come_in_smaller_batches() -> None:
    limits = BatchLimits(max_batch=8, pixels=8 * 4)
    assert [limits.most((3, side, side)) for side in (1, 2, 3, 4, 100)] == [8, 8, 3, 2, 1]
    engine = Fake()
    with batching(engine, max_batch=8, pixels=8 * 4) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n, side=4)) for n in range(4)]
        assert [value(future) for future in futures] == [0, 1, 2, 3]
        with pytest.raises(ShapeError, match="expected 1 to 2"):
            batcher.submit(image(0, count=3, side=4))
    assert [shape[0] for shape in engine.batches] == [1, 2, 2]


def test_alone_it_does_not_wait() -> None:
    """With a delay of 30 s, answers come while the test lasts."""
    with batching(Fake(), max_batch=8, max_delay=30.0) as batcher:
        for turn in range(5):
            assert value(batcher.submit(image(turn))) == turn


def test_waits_for_callers_seen_before() -> None:
    """Eight that come again one after the other are computed together, and the first of them waits
    max_delay at most when the others do not come."""
    engine = Fake()
    with batching(engine, max_batch=8, max_delay=30.0) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n)) for n in range(8)]
        for future in futures:
            future.result(WAIT)
        again = []
        for n in range(8):
            again.append(batcher.submit(image(n)))
            time.sleep(0.002)
        assert [value(future) for future in again] == list(range(8))
        assert [shape[0] for shape in engine.batches] == [1, 8, 8]
        batcher.limits = BatchLimits(max_batch=8, max_delay=0.05)
        assert value(batcher.submit(image(5))) == 5
    assert [shape[0] for shape in engine.batches] == [1, 8, 8, 1]


def test_forgets_callers_that_left() -> None:
    engine = Fake()
    with batching(engine, max_batch=8, max_delay=0.01) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n)) for n in range(8)]
        for future in futures:
            future.result(WAIT)
        for turn in range(4):
            assert value(batcher.submit(image(turn))) == turn
        batcher.limits = BatchLimits(max_batch=8, max_delay=30.0)
        assert value(batcher.submit(image(7))) == 7  # nobody is waited for any more


def test_full_is_told_at_once() -> None:
    engine = Fake()
    with batching(engine, max_batch=4, queue=3) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n)) for n in range(3)]
            assert batcher.depth == 3
            with pytest.raises(Full, match="3 images wait; expected at most 3"):
                batcher.submit(image(9))
            assert futures[1].cancel()
            futures.append(batcher.submit(image(3)))  # the cancelled one gave way
        assert [value(futures[n]) for n in (0, 2, 3)] == [0, 2, 3]
        assert value(batcher.submit(image(4))) == 4


def test_expired_requests_cost_nothing() -> None:
    engine = Fake()
    with batching(engine, max_batch=4, queue=2) as batcher:
        with busy(engine, batcher):
            late = batcher.submit(image(1), time.monotonic() + 0.01)
            with pytest.raises(Expired, match=r"not begun within 0\.0"):
                late.result(WAIT)  # while the engine is busy: it is not found out at the end
            assert batcher.depth == 0
            passed = batcher.submit(image(2), time.monotonic() - 1)
            in_time = batcher.submit(image(3), time.monotonic() + WAIT)
        assert value(in_time) == 3
        assert isinstance(passed.exception(WAIT), Expired)
    assert [shape[0] for shape in engine.batches] == [1, 1]


def test_expires_in_a_batch_that_is_put_together_already(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        ahead = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.ahead

    clock, engine = Clock(), Fake()
    monkeypatch.setattr("rest_deploy.serve.batcher.time", clock)
    with batching(engine, max_batch=2) as batcher:
        with busy(engine, batcher):
            late = batcher.submit(image(1), time.monotonic() + 1000)
            other = batcher.submit(image(2))  # full: it is taken, and waits for the engine
            gone = time.monotonic() + WAIT / 2
            while batcher.depth and time.monotonic() < gone:
                time.sleep(0.001)
            assert batcher.depth == 0
            clock.ahead = 2000.0
        assert value(other) == 2
        assert isinstance(late.exception(WAIT), Expired)
    assert [shape[0] for shape in engine.batches] == [1, 1]


def test_cancelled_requests_cost_nothing() -> None:
    engine = Fake()
    with batching(engine, max_batch=4) as batcher:
        with busy(engine, batcher):
            gone, kept = batcher.submit(image(1)), batcher.submit(image(2))
            assert gone.cancel()
        assert value(kept) == 2
    assert [shape[0] for shape in engine.batches] == [1, 1]


def test_an_error_reaches_its_batch_and_no_other() -> None:
    engine = Fake()
    with batching(engine, max_batch=2) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(value)) for value in (1, 2, FAILS, 4, 5, 6)]
        errors = [future.exception(WAIT) for future in futures]
        kinds = [type(error).__name__ for error in errors]
        assert kinds == ["NoneType"] * 2 + ["ZeroDivisionError"] * 2 + ["NoneType"] * 2
        assert value(batcher.submit(image(7))) == 7


def test_nan_reaches_its_request_and_no_other() -> None:
    engine = Fake()
    with batching(engine, max_batch=4) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(value)) for value in (1, NAN, float("inf"), 4)]
        assert value(futures[0]) == 1
        assert value(futures[3]) == 4
        for future in futures[1:3]:
            with pytest.raises(NotFinite):
                future.result(WAIT)
    assert [shape[0] for shape in engine.batches] == [1, 4]


def test_each_gets_the_outputs_it_asked_for() -> None:
    """Requests for other outputs share a batch, and every output is split along it."""
    engine = Fake()
    with batching(engine, max_batch=8) as batcher:
        with busy(engine, batcher):
            futures = [
                batcher.submit(image(1), names=("logits",)),
                batcher.submit(image(2, count=2), names=("map", "logits")),
                batcher.submit(image(3)),
                batcher.submit(image(4), names=("nothing",)),
                batcher.submit(image(5), names=("map",)),
            ]
        found = [future.result(WAIT).outputs for future in (*futures[:3], futures[4])]
        with pytest.raises(InvariantError, match="no nothing any more"):
            futures[3].result(WAIT)
    assert [shape[0] for shape in engine.batches] == [1, 6]
    assert [list(outputs) for outputs in found] == [
        *(["logits"], ["map", "logits"], ["logits", "map"], ["map"]),
    ]
    for outputs, value_, count in zip(found, (1, 2, 3, 5), (1, 2, 1, 1), strict=True):
        if "map" in outputs:
            assert outputs["map"].shape == (count, 5, 3, 2)
            assert (outputs["map"] == value_).all()
        if "logits" in outputs:
            assert outputs["logits"][:, 0].tolist() == [value_] * count


def test_nan_in_an_output_that_nobody_asked_for() -> None:
    class Half:
        def run_all(self, images: Images, /) -> dict[str, Float32]:
            ones = np.ones((len(images), 2), np.float32)
            return {"logits": ones, "map": ones * np.float32("nan")}

    with batching(Half()) as batcher:
        assert value(batcher.submit(image(1), names=("logits",))) == 1
        with pytest.raises(NotFinite):
            batcher.submit(image(1)).result(WAIT)


def test_pixels_are_counted_whatever_the_layout() -> None:
    limits = BatchLimits(max_batch=8, pixels=4 * 20 * 30)
    assert limits.most((3, 20, 30)) == limits.most((20, 30, 3)) == 4


def test_an_answer_of_the_wrong_length_is_nobodys() -> None:
    class Short:
        def run_all(self, images: Images, /) -> dict[str, Float32]:
            return {"logits": np.zeros((min(1, len(images)), 2), np.float32)}

    with batching(Short()) as batcher:
        assert value(batcher.submit(image(1))) == 0
        with pytest.raises(InvariantError, match="2 images gave 'logits' of"):
            batcher.submit(image(1, count=2)).result(WAIT)


def test_an_observer_that_fails_stops_nothing() -> None:
    seen: list[int] = []

    def observe(images: int, seconds: float) -> None:
        seen.append(images)
        raise RuntimeError("no space for figures")

    batcher = Batcher(Fake(), BatchLimits(), observe)
    assert [value(batcher.submit(image(n))) for n in range(5)] == list(range(5))
    batcher.close()
    assert seen == [1] * 5


def test_close_computes_what_waits() -> None:
    engine = Fake()
    batcher = Batcher(engine, BatchLimits(max_batch=4, max_delay=30.0))
    engine.gate.clear()
    futures = [batcher.submit(image(n)) for n in range(11)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    refused_soon(batcher)
    engine.gate.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert [value(future) for future in futures] == list(range(11))


def test_close_without_draining_answers_what_waits() -> None:
    engine = Fake()
    batcher = Batcher(engine, BatchLimits(max_batch=4))
    with busy(engine, batcher):
        futures = [batcher.submit(image(n)) for n in range(3)]
        closing = threading.Thread(target=lambda: batcher.close(drain=False))
        closing.start()
        assert [type(future.exception(WAIT)) for future in futures] == [Closed] * 3
    closing.join(WAIT)
    assert not closing.is_alive()
    assert engine.batches == [(1, 3, 2, 2)]


def refused_soon(batcher: Batcher[Any]) -> None:
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        try:
            batcher.submit(image(99)).add_done_callback(lambda _future: None)
        except Closed:
            return
        time.sleep(0.001)
    pytest.fail("a closed batcher takes requests")


def test_swap_waits_for_the_old_engine_and_no_longer() -> None:
    old, new = Fake("old"), Fake("new")
    with batching(old, max_batch=2) as batcher:
        old.gate.clear()
        first = batcher.submit(image(1))
        assert old.begun.acquire(timeout=WAIT)
        waiting = [batcher.submit(image(n)) for n in range(2, 5)]
        given_back: list[Any] = []
        swapping = threading.Thread(target=lambda: given_back.append(batcher.swap(new)))
        swapping.start()
        later = [batcher.submit(image(n)) for n in range(5, 8)]
        time.sleep(0.02)
        assert given_back == []  # it still computes
        old.gate.set()
        swapping.join(WAIT)
        assert given_back == [old]
        assert first.result(WAIT).engine is old
        for number, future in enumerate([*waiting, *later], start=2):
            assert future.result(WAIT).engine is new
            assert value(future) == number
    assert old.batches == [(1, 3, 2, 2)]


def test_instances_compute_at_the_same_time() -> None:
    engine = Fake()
    with batching(engine, max_batch=1, instances=2) as batcher:
        engine.gate.clear()
        futures = [batcher.submit(image(n)) for n in range(6)]
        for _ in range(2):
            assert engine.begun.acquire(timeout=WAIT)
        engine.gate.set()
        assert [value(future) for future in futures] == list(range(6))
    assert engine.most_at_once == 2


def test_backlog_is_told_in_seconds() -> None:
    engine = Fake(seconds=0.02)
    with batching(engine, max_batch=1) as batcher:
        assert batcher.backlog_seconds == 0
        value(batcher.submit(image(1)))
        with busy(engine, batcher):
            for n in range(3):
                batcher.submit(image(n))
            assert batcher.backlog_seconds > 3 * 0.02 * 0.5


@pytest.mark.parametrize("count", [0, 9])
def test_more_images_than_a_batch_are_refused(count: int) -> None:
    with batching(Fake(), max_batch=8) as batcher, pytest.raises(ShapeError, match="1 to 8"):
        batcher.submit(image(1, count=count))


@pytest.mark.parametrize(
    "limits",
    [{"max_batch": 0}, {"queue": 0}, {"instances": 0}, {"max_delay": -1.0}, {"max_delay": 60.0}],
)
def test_limits_that_make_no_sense(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected max_batch, queue"):
        BatchLimits(**limits)


def test_the_property_test_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: rows handed out in the wrong order are found."""
    engine = Fake()
    right = engine.run_all

    def shuffled(images: Images) -> dict[str, Float32]:
        return {name: values[::-1] for name, values in right(images).items()}

    monkeypatch.setattr(engine, "run_all", shuffled)
    with batching(engine, max_batch=4) as batcher:
        with busy(engine, batcher):
            futures = [batcher.submit(image(n)) for n in range(4)]
        assert [value(future) for future in futures] == [3, 2, 1, 0]
