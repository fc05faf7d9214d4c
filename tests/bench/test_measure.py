"""Rounds, modes and failures, with engines whose times are made up."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rest_deploy.bench import measure
from rest_deploy.bench.measure import compare
from rest_deploy.bench.plan import INPUTS, Comparison, Measured, Plan, Point, Subject, sweep
from rest_deploy.bench.record import Measurement, Mode
from rest_deploy.bench.stopping import Limits
from rest_deploy.bench.watch import Look
from rest_deploy.cards import load_card
from rest_deploy.errors import ArtifactError, InputError, ShapeError
from rest_deploy.runtime.execution import DeviceTimes
from tests.doubles.engines import FakeClock, FakeEngine, Float32, honest, noisy

SHAPE = Point(batch=1, height=32, width=32)
LIMITS = Limits(noise=0.01, min_seconds=0.2, max_seconds=2.0, min_samples=20)


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {"points": (SHAPE,), "limits": LIMITS, "instances": 1}
    return Plan(**(fields | changes))


def quiet() -> Look:
    return Look(at=0.0, own=0.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def run(clock: FakeClock) -> Callable[..., Comparison]:
    def measured(engines: dict[str, FakeEngine], **changes: Any) -> Comparison:
        subjects = [Subject(label, lambda _, e=engine: e) for label, engine in engines.items()]  # type: ignore[misc]  # a default binds it
        return compare(subjects, plan(**changes), clock=clock, look=quiet)

    return measured


Run = Callable[..., Comparison]


def only(found: Measured) -> Measurement:
    assert found.failed == ""
    (measurement,) = found.measurements
    return measurement


def test_one_engine(run: Run, clock: FakeClock) -> None:
    engine = FakeEngine(clock, 10.0)
    found = run({"a": engine})
    measurement = only(found.engines[0])
    assert measurement.host.median == 10
    assert measurement.samples == (10.0,) * measurement.host.n
    assert measurement.host.n == 20, "0.2 s at 10 ms"
    assert measurement.images_per_second == pytest.approx(100)
    assert measurement.stopped_by == "noise 0.0 % <= 1.0 % after 20 runs"
    assert (measurement.noise, measurement.outliers) == (0, 0)
    assert measurement.warnings == ("20 runs: p99 is the maximum; p99 needs 100 runs",)
    assert measurement.shape == "1x3x32x32"
    assert found.ratios == ()
    assert engine.closed


def test_what_compiles_by_shape_does_so_first(run: Run, clock: FakeClock) -> None:
    """Before its first answer, at every point."""
    events: list[str] = []

    class Compiling(FakeEngine):
        def warm_up(self, shapes: list[tuple[int, ...]]) -> None:
            events.extend("x".join(map(str, shape)) for shape in shapes)

        def run(self, images: Float32, /) -> Float32:
            events.append("run")
            return super().run(images)

    points = (SHAPE, Point(batch=2, height=64, width=32))
    found = run({"a": Compiling(clock, 10.0)}, points=points)
    assert found.engines[0].failed == ""
    assert [e for e in events if e != "run"] == ["1x3x32x32", "2x3x64x32"]
    assert events[0] == "1x3x32x32"


def test_the_harness_counts_itself(clock: FakeClock) -> None:
    """Not within the samples, and reported: 1 ms a look at the answer, 10 ms an inference."""

    class Slow(FakeEngine):
        def run(self, images: Float32, /) -> Float32:
            answer = super().run(images)

            class Late(np.ndarray[Any, Any]):
                """An answer that takes long to look at."""

                def __sub__(self, other: Any) -> Any:
                    clock.pass_ms(1.0)
                    return np.asarray(self) - other

            return answer.view(Late)

    (found,) = compare([Subject("a", lambda _: Slow(clock, 10.0))], plan(), clock=clock,
                       look=quiet).engines  # fmt: skip
    assert only(found).host.max == 10
    assert found.overhead == pytest.approx(0.1)


def test_no_overhead_where_there_is_none(run: Run, clock: FakeClock) -> None:
    (found,) = run({"a": FakeEngine(clock, 10.0)}).engines
    assert found.overhead == pytest.approx(0, abs=1e-9)


def test_twice_as_fast(run: Run, clock: FakeClock) -> None:
    found = run({"slow": FakeEngine(clock, noisy(10, 0.05, 1)),
                 "fast": FakeEngine(clock, noisy(5, 0.05, 2))})  # fmt: skip
    (ratio,) = found.ratios
    assert (ratio.base, ratio.other, ratio.shape) == ("slow", "fast", "1x3x32x32")
    assert ratio.low <= 2 <= ratio.high
    assert ratio.verdict == "faster"
    assert ratio.rounds >= 20
    assert [engine.label for engine in found.engines] == ["slow", "fast"]


@pytest.mark.slow
def test_two_of_one_kind_and_one_five_percent_slower(clock: FakeClock) -> None:
    """In 20 comparisons each: equals are never called faster or slower, 5 % is found in 19."""
    equal: list[str] = []
    slower: list[str] = []
    for seed in range(20):
        for factor, verdicts in ((1.0, equal), (1.05, slower)):
            engines = (noisy(10, 0.04, seed), noisy(10 * factor, 0.04, 100 + seed))
            subjects = [
                Subject(str(index), lambda _, t=times: FakeEngine(clock, t))  # type: ignore[misc]  # a default binds it
                for index, times in enumerate(engines)
            ]
            found = compare(subjects, plan(seed=seed), clock=clock, look=quiet)
            verdicts.append(found.ratios[0].verdict)
    assert set(equal) <= {"no difference", "ambiguous"}
    assert equal.count("no difference") >= 15
    assert slower.count("slower") >= 19


def test_drift_cancels(run: Run, clock: FakeClock) -> None:
    """A machine that gets half as slow again: one after another would see it in the ratio."""

    def drifting() -> Iterator[float]:
        while True:
            yield 10 * (1 + clock() / 8e9)

    found = run({"a": FakeEngine(clock, drifting()), "b": FakeEngine(clock, drifting())})
    (ratio,) = found.ratios
    assert ratio.verdict == "no difference"
    assert only(found.engines[0]).host.max / only(found.engines[0]).host.min > 1.3


def test_the_order_within_rounds_changes(clock: FakeClock) -> None:
    turns: list[str] = []

    class Noted(FakeEngine):
        def __init__(self, name: str) -> None:
            super().__init__(clock, 10.0)
            self.name = name

        def run(self, images: Float32, /) -> Float32:
            turns.append(self.name)
            return super().run(images)

    def order(seed: int) -> list[str]:
        turns.clear()
        compare([Subject(n, lambda _, n=n: Noted(n)) for n in "abc"], plan(seed=seed), clock=clock,  # type: ignore[misc]  # a default binds it
                look=quiet)  # fmt: skip
        return [name for name, _ in itertools.groupby(turns)]

    first = order(1)
    assert {tuple(first[i : i + 3]) for i in range(3, 60)} >= {("b", "a", "c"), ("a", "b", "c")}
    assert order(1) == first
    assert order(2) != first


@pytest.mark.parametrize("mode", ["isolated", "saturated"])
def test_the_first_run_of_a_block_is_not_counted(run: Run, clock: FakeClock, mode: Mode) -> None:
    """It finds the other engine's data in the caches."""
    cold = {"last": ""}

    class Cached(FakeEngine):
        def run(self, images: Float32, /) -> Float32:
            before, cold["last"] = cold["last"], str(id(self))
            if before != cold["last"]:
                clock.pass_ms(500.0)
            return super().run(images)

    points = sweep(sizes=((32, 32),), modes=(mode,), in_flight=(2,))
    found = run({"a": Cached(clock, 10.0), "b": Cached(clock, 10.0)}, points=points)
    assert max(only(engine).host.max for engine in found.engines) < 500


# --- instances -----------------------------------------------------------------------------------


def lucky(clock: FakeClock, opened: list[str], label: str) -> Subject:
    """An engine whose instance is 4 % faster the later it was opened."""

    def open_it(_: int) -> FakeEngine:
        later = len(opened) % 2
        opened.append(label)
        return FakeEngine(clock, noisy(10 / (1 + 0.04 * later), 0.01, len(opened)))

    return Subject(label, open_it)


@pytest.mark.parametrize(("instances", "verdicts"), [(1, {"faster"}), (2, {"ambiguous"})])
def test_where_memory_lies_is_not_the_engines_speed(
    clock: FakeClock, instances: int, verdicts: set[str]
) -> None:
    """The control: with one instance each, the one that was opened later is called faster."""
    opened: list[str] = []
    subjects = [lucky(clock, opened, label) for label in "ab"]
    found = compare(subjects, plan(instances=instances), clock=clock, look=quiet)
    assert opened == ["a", "b", "b", "a"][: 2 * instances]
    (ratio,) = found.ratios
    assert {ratio.verdict} == verdicts
    assert ratio.low <= (1 if instances == 2 else 1.04) <= ratio.high


@pytest.mark.parametrize("instances", [2, 3])
def test_instances_have_equal_weight(clock: FakeClock, instances: int) -> None:
    """Also where the first was the noisiest."""
    sessions: list[FakeEngine] = []

    def open_it(_: int) -> FakeEngine:
        sessions.append(FakeEngine(clock, noisy(10, 0.0 if sessions else 0.2, 1)))
        return sessions[-1]

    (found,) = compare([Subject("a", open_it)], plan(instances=instances), clock=clock,
                       look=quiet).engines  # fmt: skip
    assert len(sessions) == instances
    assert all(session.closed for session in sessions)
    last = sessions[-1].runs / sum(session.runs for session in sessions)
    assert last >= 0.8 / instances
    assert only(found).host.n >= LIMITS.min_samples


def test_an_instance_that_answers_otherwise(clock: FakeClock) -> None:
    answers = iter((honest, lambda images: honest(images) * 2))

    def open_it(_: int) -> FakeEngine:
        return FakeEngine(clock, 10.0, next(answers))

    (found,) = compare([Subject("a", open_it)], plan(instances=2), clock=clock, look=quiet).engines
    assert "otherwise than at its start" in found.failed
    assert found.measurements == ()


def test_a_shape_is_skipped_once(clock: FakeClock) -> None:
    def refusing(images: Float32) -> Float32:
        raise ShapeError("no profile holds it")

    subjects = [Subject("a", lambda _: FakeEngine(clock, 10.0)),
                Subject("b", lambda _: FakeEngine(clock, 10.0, refusing))]  # fmt: skip
    a, b = compare(subjects, plan(instances=3), clock=clock, look=quiet).engines
    assert only(a).host.median == 10
    assert b.skipped == ("1x3x32x32 isolated: no profile holds it",)
    assert b.measurements == ()


def test_one_warning_of_a_kind(clock: FakeClock) -> None:
    looks = (Look(at=10.0 * i, own=i, cores=2, busy=(12.0 + i) * i) for i in itertools.count())
    (found,) = compare([Subject("a", lambda _: FakeEngine(clock, 10.0))], plan(instances=3),
                       clock=clock, look=lambda: next(looks)).engines  # fmt: skip
    assert sum("other programs" in warning for warning in only(found).warnings) == 1


# --- failures ------------------------------------------------------------------------------------


def failing_after(runs: int, then: Callable[[Float32], Float32]) -> Callable[[Float32], Float32]:
    count = itertools.count()
    return lambda images: honest(images) if next(count) < runs else then(images)


def raising(images: Float32) -> Float32:
    raise RuntimeError("kernel  died\nat 0x7f")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (failing_after(30, raising), "RuntimeError: kernel died at 0x7f"),
        (failing_after(0, raising), "RuntimeError: kernel died at 0x7f"),
        (failing_after(30, lambda images: honest(images) * np.nan), "answers NaN or infinity"),
        (failing_after(0, lambda images: honest(images) * np.inf), "answers NaN or infinity"),
        (lambda images: np.ones((len(images), 10), np.float32), "the same to 4 different images"),
        (lambda images: honest(images)[:, :9], "answers 9 classes; expected 10"),
        (failing_after(30, lambda images: honest(images)[:, ::-1]), "otherwise than at its start"),
        (failing_after(30, lambda images: honest(images)[:, :4]), "at its start (1, 10)"),
    ],
)
def test_an_engine_fails_and_the_rest_goes_on(
    run: Run, clock: FakeClock, answer: Callable[[Float32], Float32], reason: str
) -> None:
    bad = FakeEngine(clock, 1.0, answer)
    found = run({"good": FakeEngine(clock, 10.0), "bad": bad, "other": FakeEngine(clock, 10.0)},
                classes=10)  # fmt: skip
    good, failed, other = found.engines
    assert reason in failed.failed
    assert failed.measurements == ()
    assert bad.closed
    assert only(good).host.median == only(other).host.median == 10
    assert [(ratio.base, ratio.other) for ratio in found.ratios] == [("good", "other")]


def test_one_that_does_not_open_or_close(clock: FakeClock) -> None:
    def broken(_: int) -> FakeEngine:
        raise ArtifactError("the file is damaged", hint="rest-deploy export")

    class Stuck(FakeEngine):
        def close(self) -> None:
            raise OSError("busy")

    subjects = [Subject("good", lambda _: FakeEngine(clock, 1.0)), Subject("bad", broken),
                Subject("stuck", lambda _: Stuck(clock, 1.0))]  # fmt: skip
    good, bad, stuck = compare(subjects, plan(), clock=clock, look=quiet).engines
    assert only(good).host.median == 1
    assert bad.failed == "the file is damaged (rest-deploy export)"
    assert stuck.failed == "cannot be closed: OSError: busy"


def test_all_fail(run: Run, clock: FakeClock) -> None:
    found = run({"a": FakeEngine(clock, 1.0, raising), "b": FakeEngine(clock, 1.0, raising)})
    assert all(engine.failed for engine in found.engines)
    assert found.ratios == ()


def test_a_shape_that_is_refused_is_no_failure(run: Run, clock: FakeClock) -> None:
    def small(images: Float32) -> Float32:
        if len(images) > 2:
            raise ShapeError("no profile holds it")
        return honest(images)

    found = run({"a": FakeEngine(clock, 10.0), "b": FakeEngine(clock, 10.0, small)},
                points=sweep(batches=(1, 4), sizes=((32, 32),)))  # fmt: skip
    wide, narrow = found.engines
    assert [m.batch for m in wide.measurements] == [1, 4]
    assert [m.batch for m in narrow.measurements] == [1]
    assert narrow.failed == ""
    assert narrow.skipped == ("4x3x32x32 isolated: no profile holds it",)
    assert [ratio.shape for ratio in found.ratios] == ["1x3x32x32"]


def test_failing_later_takes_earlier_numbers_back(run: Run, clock: FakeClock) -> None:
    def fragile(images: Float32) -> Float32:
        return raising(images) if len(images) > 2 else honest(images)

    found = run({"a": FakeEngine(clock, 10.0), "b": FakeEngine(clock, 10.0, fragile)},
                points=sweep(batches=(1, 4), sizes=((32, 32),)))  # fmt: skip
    assert found.engines[1].measurements == ()
    assert found.ratios == ()


def test_interruption_is_not_a_failure(run: Run, clock: FakeClock) -> None:
    def interrupted(images: Float32) -> Float32:
        raise KeyboardInterrupt

    engine = FakeEngine(clock, 1.0, failing_after(30, interrupted))
    gc.enable()
    with pytest.raises(KeyboardInterrupt):
        run({"a": engine})
    assert engine.closed
    assert gc.isenabled()


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_saturated(run: Run, clock: FakeClock, in_flight: int) -> None:
    """An engine that serves one request after another: throughput does not grow with load."""
    engine = FakeEngine(clock, 10.0)
    found = run({"a": engine}, points=sweep(
        batches=(4,), sizes=((32, 32),), modes=("saturated",), in_flight=(in_flight,)))  # fmt: skip
    measurement = only(found.engines[0])
    assert (measurement.in_flight, measurement.mode) == (in_flight, "saturated")
    assert measurement.images_per_second == pytest.approx(400, rel=0.35)
    assert found.engines[0].overhead == 0


def test_saturated_failure_is_the_engines_own(run: Run, clock: FakeClock) -> None:
    """Not the barrier that broke for the others, which wait for it at the beginning of a turn."""
    once = threading.Lock()

    def answer(images: Float32) -> Float32:
        in_pool = threading.current_thread() is not threading.main_thread()
        return raising(images) if in_pool and once.acquire(blocking=False) else honest(images)

    found = run(
        {"a": FakeEngine(clock, 1.0, answer), "b": FakeEngine(clock, 1.0)},
        points=sweep(sizes=((32, 32),), modes=("saturated",), in_flight=(3,)),
    )
    assert found.engines[0].failed == "RuntimeError: kernel died at 0x7f"
    assert only(found.engines[1]).host.n >= 20


def test_saturated_failure_in_the_middle(run: Run, clock: FakeClock) -> None:
    engine = FakeEngine(clock, 1.0, failing_after(300, raising))
    found = run({"a": engine},
                points=sweep(sizes=((32, 32),), modes=("saturated",), in_flight=(3,)))  # fmt: skip
    assert found.engines[0].failed == "RuntimeError: kernel died at 0x7f"


def test_what_a_thread_costs_first_is_not_counted(run: Run, clock: FakeClock) -> None:
    """A GPU's lane is made when the first request of a further thread comes."""
    lanes: set[int] = set()

    class Laned(FakeEngine):
        def run(self, images: Float32, /) -> Float32:
            if threading.get_ident() not in lanes:
                lanes.add(threading.get_ident())
                clock.pass_ms(500.0)
            return super().run(images)

    found = run({"a": Laned(clock, 10.0)}, points=sweep(
        sizes=((32, 32),), modes=("saturated",), in_flight=(3,)))  # fmt: skip
    assert len(lanes) > 1
    assert only(found.engines[0]).host.max < 500


def test_end_to_end(run: Run, clock: FakeClock) -> None:
    """From the pixels: preprocessing is within the time, and every photo is used."""
    seen: set[bytes] = set()

    def answer(images: Float32) -> Float32:
        assert images.shape == (2, 3, 48, 32)
        seen.update(image.tobytes() for image in images)
        return honest(images)

    generator = np.random.default_rng(0)
    photos = tuple(generator.integers(0, 256, (80, 90, 3), dtype=np.uint8) for _ in range(5))
    found = run({"a": FakeEngine(clock, 10.0, answer)},
        points=sweep(batches=(2,), sizes=((48, 32),), modes=("end-to-end",)),
        photos=photos, preprocessing=load_card("nano").preprocessing)  # fmt: skip
    assert only(found.engines[0]).mode == "end-to-end"
    assert only(found.engines[0]).images_per_second == pytest.approx(200)
    assert len(seen) == 5


class Timed(FakeEngine):
    """Like a session of a TensorRT engine."""

    enqueue = 0.5

    class Runner:
        input_name, input_dtype = "image", "float32"

        def __init__(self, engine: Timed) -> None:
            self.engine = engine

        def infer_timed(self, feeds: Any) -> Any:
            answer = self.engine.run(feeds["image"])
            return {"logits": answer}, DeviceTimes(0.1, 2.0, 0.05, self.engine.enqueue)

    @property
    def runner(self) -> Runner:
        return self.Runner(self)


def test_times_of_the_device(run: Run, clock: FakeClock) -> None:
    slow = Timed(clock, 3.0)
    slow.enqueue = 1.9
    found = run({"a": Timed(clock, 3.0), "b": slow, "cpu": FakeEngine(clock, 3.0)})
    gpu, bound, cpu = map(only, found.engines)
    assert {part: spread.median for part, spread in gpu.device.items()} == {
        "h2d": 0.1, "compute": 2.0, "d2h": 0.05, "enqueue": 0.5,
    }  # fmt: skip
    assert gpu.device["compute"].n == gpu.host.n
    assert not any("enqueue-bound" in warning for warning in gpu.warnings)
    assert any(w.startswith("enqueue-bound: the host takes 1.900 ms") for w in bound.warnings)
    assert cpu.device == {}


# --- sweeps, warm-up, warnings -------------------------------------------------------------------


def test_threads_are_sessions_of_their_own(clock: FakeClock) -> None:
    opened: list[int] = []
    engines: list[FakeEngine] = []

    def open_with(threads: int) -> FakeEngine:
        opened.append(threads)
        engines.append(FakeEngine(clock, 8.0 / max(threads, 1)))
        return engines[-1]

    points = (*sweep(threads=(2, 1), sizes=((32, 32), (64, 64))),)
    (found,) = compare([Subject("a", open_with)], plan(points=points), clock=clock,
                       look=quiet).engines  # fmt: skip
    assert opened == [1, 2]
    assert [(m.threads, m.height, m.host.median) for m in found.measurements] == [
        (1, 32, 8), (1, 64, 8), (2, 32, 4), (2, 64, 4),
    ]  # fmt: skip
    assert all(engine.closed for engine in engines)


def test_sweep() -> None:
    points = sweep((1, 8), ((224, 224),), ("isolated", "saturated"), (0,), (2, 4))
    assert [str(point) for point in points] == [
        "1x3x224x224 isolated",
        "1x3x224x224 saturated, 2 in flight",
        "1x3x224x224 saturated, 4 in flight",
        "8x3x224x224 isolated",
        "8x3x224x224 saturated, 2 in flight",
        "8x3x224x224 saturated, 4 in flight",
    ]


def test_warm_up_until_steady(run: Run, clock: FakeClock) -> None:
    def warming() -> Iterator[float]:
        yield from [10.0] * INPUTS
        yield from np.linspace(20, 10, 30).tolist()
        while True:
            yield 10.0

    engine = FakeEngine(clock, warming())
    measurement = only(run({"a": engine}).engines[0])
    assert measurement.host.max == 10
    assert not any("warm-up" in warning for warning in measurement.warnings)


def test_warm_up_takes_its_time(run: Run, clock: FakeClock) -> None:
    """A GPU's clock rises within 0.2 s: ten steady runs of a fast engine are no warm-up."""

    def rising() -> Iterator[float]:
        while True:
            yield 1.0 if clock() < 150e6 else 0.5

    measurement = only(run({"a": FakeEngine(clock, rising())}).engines[0])
    assert measurement.host.max == 0.5


@pytest.mark.parametrize(("milliseconds", "uncounted"), [(400.0, 6), (600.0, 1)])
def test_long_runs_are_not_thrown_away(
    run: Run, clock: FakeClock, milliseconds: float, uncounted: int
) -> None:
    engine = FakeEngine(clock, milliseconds)
    measurement = only(run({"a": engine}, limits=Limits(max_seconds=1.0)).engines[0])
    assert measurement.host.n == 6
    warm = -(-2000 // milliseconds)
    assert engine.runs == INPUTS + warm + uncounted + 6


def test_never_steady(run: Run, clock: FakeClock) -> None:
    times = (10.0 * 1.05**index for index in range(10_000))
    measurement = only(run({"a": FakeEngine(clock, times)}).engines[0])
    assert "times were still changing after a warm-up of 2 s" in measurement.warnings
    assert any(w.startswith("noise ") and "above the target" in w for w in measurement.warnings)


def test_outliers_are_announced(run: Run, clock: FakeClock) -> None:
    times = itertools.cycle([10.0, 10.1, 9.9, 10.2, 9.8, 10.0, 10.1, 9.9, 10.0, 90.0])
    measurement = only(run({"a": FakeEngine(clock, times)}).engines[0])
    assert measurement.outliers > 0
    assert measurement.host.max == 90, "kept"
    assert any("beyond the upper fence; they are counted" in w for w in measurement.warnings)


def test_what_the_machine_did(clock: FakeClock) -> None:
    looks = iter([Look(at=0, own=0, cores=2, busy=0.0), Look(at=10, own=10, cores=2, busy=20.0)])
    (found,) = compare([Subject("a", lambda _: FakeEngine(clock, 10.0))], plan(), clock=clock,
                       look=lambda: next(looks)).engines  # fmt: skip
    assert any(w.startswith("other programs kept 1.0") for w in only(found).warnings)


def test_went_on_with_the_others(run: Run, clock: FakeClock) -> None:
    """A quiet engine waits for a noisy one, and says so."""
    found = run({"quiet": FakeEngine(clock, 10.0), "noisy": FakeEngine(clock, noisy(10, 0.5, 0))},
                min_rounds=6)  # fmt: skip
    calm, wild = map(only, found.engines)
    assert "; went on with the others to 0.0 % after " in calm.stopped_by
    assert wild.stopped_by.startswith("time 2 s is over, noise ")


def test_collection_is_off_while_sampling(run: Run, clock: FakeClock) -> None:
    states: set[bool] = set()

    class Looking(FakeEngine):
        def run(self, images: Float32, /) -> Float32:
            if self.runs > 250:
                states.add(gc.isenabled())
            return super().run(images)

    gc.enable()
    run({"a": Looking(clock, 1.0)})
    assert states == {False}
    assert gc.isenabled()
    gc.disable()
    try:
        with measure.collection_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_progress(clock: FakeClock) -> None:
    told: list[tuple[str, int, int, str]] = []
    compare([Subject("a", lambda _: FakeEngine(clock, 10.0))], plan(),
            lambda *given: told.append(given), clock=clock, look=quiet)  # fmt: skip
    assert {step for step, *_ in told} == {"1x3x32x32 isolated"}
    assert [done for _, done, *_ in told] == sorted(done for _, done, *_ in told)


# --- refused plans -------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "base"), [((), ""), (("a", "a"), ""), (("a", "b"), "c")])
def test_subjects_refused(labels: tuple[str, ...], base: str, clock: FakeClock) -> None:
    subjects = [Subject(label, lambda _: FakeEngine(clock, 1.0)) for label in labels]
    with pytest.raises(InputError, match=r"different labels|none of"):
        compare(subjects, plan(base=base), clock=clock, look=quiet)


@pytest.mark.parametrize(
    "changes",
    [
        {"points": ()},
        {"points": sweep(modes=("end-to-end",))},
        {"block_seconds": 0.0},
        {"smallest": float("nan")},
        {"min_rounds": 5},
        {"instances": 0},
    ],
)
def test_plan_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        plan(**changes)


@pytest.mark.parametrize(
    "fields", [{"batch": 0}, {"height": 31}, {"threads": -1}, {"in_flight": 2}, {"in_flight": 0}]
)
def test_point_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|in flight"):
        Point(**({"batch": 1, "height": 32, "width": 32} | fields))
