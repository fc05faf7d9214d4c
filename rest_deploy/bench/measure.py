"""Engines side by side: rounds in turn, each engine's block at another place in every round.

    found = measure.compare((Subject("int8", open_int8), Subject("fp32", open_fp32)), plan)

The machine drifts, so engines are not measured one after another: a round gives each a short block
and compares within itself. An engine that fails is reported with its reason; the others go on.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from rest_deploy.bench import statistics, watch
from rest_deploy.bench.answers import Answers, WrongAnswer
from rest_deploy.bench.plan import INPUTS, Comparison, Measured, Plan, Point, Subject
from rest_deploy.bench.record import Measurement, Ratio
from rest_deploy.bench.stopping import judge
from rest_deploy.bench.timers import STEADY, Clock, Engine
from rest_deploy.bench.turns import Turns, caller
from rest_deploy.errors import InputError, RestDeployError, ShapeError

Progress = Callable[[str, int, int, str], None]
"""Called between rounds with what is measured, the percent of its time that are over, 100, "%"."""

ENQUEUE_BOUND = 0.8
"""trtexec warns where the median enqueue time is beyond so much of the GPU's compute time."""

MANY_OUTLIERS = 0.05


@dataclass
class _Entrant:
    """A subject, the engine it opened last, and what became of it."""

    subject: Subject
    engine: Engine | None = None
    failed: str = ""
    done: list[Turns] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def close(self) -> None:
        engine, self.engine = self.engine, None
        close = getattr(engine, "close", None)
        if close is not None:
            close()


def compare(
    subjects: Sequence[Subject],
    plan: Plan,
    progress: Progress = lambda *_: None,
    *,
    clock: Clock = STEADY,
    look: Callable[[], watch.Look] = watch.look,
) -> Comparison:
    """Measure every engine at every point of the plan; one engine is fine too.

    Raises `InputError` for no subjects, two of one label, or a base that is none of them. What an
    engine raises is its failure, not this function's. clock and look: for tests.
    """
    labels = [subject.label for subject in subjects]
    if not labels or len(set(labels)) < len(labels):
        raise InputError(f"expected engines with different labels, got {labels or 'none'}")
    base = plan.base or labels[0]
    if base not in labels:
        raise InputError(f"the base {base!r} is none of {', '.join(labels)}")
    entrants = [_Entrant(subject) for subject in subjects]
    order = np.random.default_rng(plan.seed)
    ratios: list[Ratio] = []
    with ExitStack() as stack:
        for entrant in entrants:
            stack.callback(_closed, entrant)
        threads: int | None = None
        for point in sorted(plan.points, key=lambda found: found.threads):
            if point.threads != threads:
                _reopen(entrants, point.threads)
                threads = point.threads
            turns = _point(entrants, point, plan, order, progress, clock, look)
            ratios += _ratios(turns, base, point, plan)
    failed = {entrant.subject.label for entrant in entrants if entrant.failed}
    return Comparison(
        engines=tuple(map(_measured, entrants)),
        ratios=tuple(r for r in ratios if failed.isdisjoint((r.base, r.other))),
    )


def _reopen(entrants: Sequence[_Entrant], threads: int) -> None:
    for entrant in entrants:
        _closed(entrant)
        with _failing(entrant):
            if not entrant.failed:
                entrant.engine = entrant.subject.open(threads)


def _ready(engine: Engine, point: Point) -> None:
    """An engine that compiles for shapes that come often does so now, not in mid-measurement: its
    times and, within rounding, its answers would change."""
    warm_up = getattr(engine, "warm_up", None)
    if warm_up is not None:
        warm_up([(point.batch, 3, point.height, point.width)])


def _point(
    entrants: Sequence[_Entrant],
    point: Point,
    plan: Plan,
    order: np.random.Generator,
    progress: Progress,
    clock: Clock,
    look: Callable[[], watch.Look],
) -> dict[str, Turns]:
    """Rounds until every engine's rule has fired. Label -> times, of the engines that held out."""
    turns: dict[str, Turns] = {}
    racing: list[_Entrant] = []
    with ExitStack() as stack:
        pool = None
        if point.mode == "saturated":
            pool = stack.enter_context(ThreadPoolExecutor(point.in_flight))
        for entrant in entrants:
            if entrant.engine is None:
                continue
            with _failing(entrant, point):
                _ready(entrant.engine, point)
                answers = Answers(inputs=INPUTS, batch=point.batch, classes=plan.classes)
                call = caller(entrant.engine, point, plan)
                found = Turns(entrant.subject.label, point, call, answers, clock)
                found.prepare(plan, pool)
                turns[found.label] = found
                racing.append(entrant)
        before = look()
        with collection_off():
            while any(turns[entrant.subject.label].stop is None for entrant in racing):
                for place in order.permutation(len(racing)).tolist():
                    entrant = racing[place]
                    with _failing(entrant):
                        _turn(turns[entrant.subject.label], plan, pool, alone=len(racing) == 1)
                racing = [entrant for entrant in racing if not entrant.failed]
                _tell(progress, point, plan, [turns[entrant.subject.label] for entrant in racing])
        warnings = watch.warnings(before, look())
    kept = {entrant.subject.label: turns[entrant.subject.label] for entrant in racing}
    for entrant in racing:
        found = turns[entrant.subject.label]
        entrant.done.append(found)
        entrant.measurements.append(_measurement(found, plan, warnings))
    return kept


def _turn(turns: Turns, plan: Plan, pool: ThreadPoolExecutor | None, *, alone: bool) -> None:
    """One block, and whether it was the last that is needed."""
    started, running = turns.clock(), turns.running
    turns.turn(plan, pool)
    if turns.stop is None:
        stop = judge(turns.samples, turns.busy, plan.limits)
        # A ratio wants rounds as well as samples; time ends it as soon as it has an interval.
        rounds = statistics.LEAST if stop is not None and stop.rule == "time" else plan.min_rounds
        if alone or len(turns.rounds) >= rounds:
            turns.stop = stop
    if pool is None:
        turns.harness += (turns.clock() - started) / 1e9 - (turns.running - running)


def _tell(progress: Progress, point: Point, plan: Plan, turns: Sequence[Turns]) -> None:
    spent = min((found.busy for found in turns), default=plan.limits.max_seconds)
    progress(str(point), min(100, round(100 * spent / plan.limits.max_seconds)), 100, "%")


def _measurement(turns: Turns, plan: Plan, machine: tuple[str, ...]) -> Measurement:
    point, samples = turns.point, turns.samples
    noise = statistics.noise(samples)
    stopped = turns.stop.words if turns.stop else ""
    if turns.stop and len(samples) > 1.1 * turns.stop.runs:
        stopped += f"; went on with the others to {noise * 100:.1f} % after {len(samples)} runs"
    outliers = statistics.outliers(samples)
    device = {part: statistics.spread(times) for part, times in turns.device.items()}
    host = statistics.spread(samples)
    return Measurement(
        batch=point.batch,
        height=point.height,
        width=point.width,
        mode=point.mode,
        threads=point.threads,
        in_flight=point.in_flight,
        host=host,
        samples=tuple(samples),
        images_per_second=turns.images_per_second(),
        noise=noise,
        stopped_by=stopped,
        outliers=outliers,
        device=device,
        warnings=(*_own_warnings(turns, noise, outliers, plan), *machine),
    )


def _own_warnings(turns: Turns, noise: float, outliers: int, plan: Plan) -> Iterator[str]:
    count, target = len(turns.samples), plan.limits.noise
    if noise > target:
        yield f"noise {noise * 100:.1f} % is above the target of {target * 100:.1f} %"
    short = [percent for percent in (90, 95, 99) if count < statistics.needed(percent)]
    if short:
        names = ", ".join(f"p{percent}" for percent in short)
        yield f"{count} runs: {names} is the maximum; p99 needs {statistics.needed(99)} runs"
    if not turns.settled:
        yield f"times were still changing after a warm-up of {plan.warmup_seconds:g} s"
    if outliers > MANY_OUTLIERS * count:
        yield f"{outliers} of {count} runs are beyond the upper fence; they are counted"
    if turns.device:
        enqueue, compute = (float(np.median(turns.device[part])) for part in ("enqueue", "compute"))
        if enqueue > ENQUEUE_BOUND * compute:
            yield (
                f"enqueue-bound: the host takes {enqueue:.3f} ms to hand over {compute:.3f} ms of "
                "work; larger batches or CUDA graphs help"
            )


def _ratios(turns: dict[str, Turns], base: str, point: Point, plan: Plan) -> list[Ratio]:
    """Of the others to the base, over the rounds that both have been in."""
    found = []
    if base in turns:
        before = turns[base].rounds
        for label, other in turns.items():
            if label == base:
                continue
            rounds = min(len(before), len(other.rounds))
            interval = statistics.paired_ratio(before[:rounds], other.rounds[:rounds])
            if interval is None:  # too few rounds: the estimate, and all that was seen
                seen = [a / b for a, b in zip(before, other.rounds, strict=False)]
                middle, low, high = float(np.median(seen)), min(seen), max(seen)
            else:
                middle, low, high = interval
            ratio = Ratio(
                base=base,
                other=label,
                shape=point.shape,
                mode=point.mode,
                ratio=middle,
                low=low,
                high=high,
                verdict=statistics.verdict(interval, plan.smallest),
                threads=point.threads,
                in_flight=point.in_flight,
                rounds=rounds,
            )
            found.append(ratio)
    return found


def _measured(entrant: _Entrant) -> Measured:
    """A failed engine has no numbers, also not those of points before."""
    alone = [found for found in entrant.done if found.point.mode != "saturated"]
    running = sum(found.running for found in alone)
    harness = sum(found.harness for found in alone)
    return Measured(
        label=entrant.subject.label,
        failed=entrant.failed,
        measurements=() if entrant.failed else tuple(entrant.measurements),
        skipped=tuple(entrant.skipped),
        overhead=harness / running if running > 0 else 0.0,
    )


@contextmanager
def _failing(entrant: _Entrant, point: Point | None = None) -> Iterator[None]:
    """What the engine raises becomes its failure; a shape it refuses at `point` is skipped."""
    try:
        yield
    except ShapeError as error:
        if point is None:
            entrant.failed = str(error)
        else:
            entrant.skipped.append(f"{point}: {error}")
    except (WrongAnswer, RestDeployError) as error:
        entrant.failed = str(error)
    except Exception as error:  # noqa: BLE001  # whatever a runtime raises, the others go on
        entrant.failed = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if entrant.failed:
        _closed(entrant)


def _closed(entrant: _Entrant) -> None:
    """Close its engine. One that cannot even be closed has failed, if it had not before."""
    try:
        entrant.close()
    except Exception as error:  # noqa: BLE001  # see `_failing`
        entrant.failed = entrant.failed or f"cannot be closed: {type(error).__name__}: {error}"


@contextmanager
def collection_off() -> Iterator[None]:
    """Without Python's cyclic garbage collector, whose pauses would be the engine's; as before
    afterwards."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
