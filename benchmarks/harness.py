"""The harness measures itself: false alarms, differences it finds, its own cost.

    python benchmarks/harness.py --checkpoint tests/assets/rest_nano_photos.safetensors \\
        --output F.json

Run it alone on the machine; it takes about six minutes. Three parts:

- intervals: five ways to put an interval around a ratio, on synthetic noise whose truth is known;
  the one that `bench.statistics.paired_ratio` uses is "order". Coverage should be 95 %.
- trials: two engines of one speed, and one slowed by 5 %, through `bench.measure.compare` as
  `rest-deploy bench` calls it; once with an engine that only spins, once with rest_nano on ONNX
  Runtime, where the slowed one spins for 5 % of the time that its inference just took.
- overhead: seconds of the harness per second of inference, at a spin of 10 ms.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from rest_deploy import verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.bench import environment, timers
from rest_deploy.bench.measure import compare
from rest_deploy.bench.plan import Plan, Subject, sweep
from rest_deploy.bench.statistics import LEAST, SMALLEST_DIFFERENCE, Interval, paired_ratio, verdict
from rest_deploy.bench.stopping import Limits
from rest_deploy.bench.timers import Engine
from rest_deploy.runtime.session import Session

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
PATH = click.Path(path_type=Path)

SLOWED = 1.05
ROUNDS, RUNS = 40, 5
RESAMPLES = 300
NOISES = ("normal", "heavy tails", "drift", "bimodal rounds", "bimodal runs", "bursts")


def noise(kind: str, generator: np.random.Generator) -> tuple[Float64, Float64]:
    """Times of two equal engines, (ROUNDS, RUNS) each."""
    shape = (ROUNDS, RUNS)
    machine = np.exp(generator.normal(0, 0.01, (ROUNDS, 1)))
    if kind == "drift":
        walk = np.linspace(0, 0.15, ROUNDS) + np.cumsum(generator.normal(0, 0.01, ROUNDS))
        machine = machine * np.exp(walk)[:, None]
    if kind == "bursts":  # a neighbour that comes and goes slows some of the runs of both
        busy = np.repeat(generator.random(ROUNDS // 4) < 0.3, 4)[:, None]
        machine = machine * (1 + 0.3 * busy)
    made = []
    for _ in range(2):
        block = np.exp(generator.normal(0, 0.01, (ROUNDS, 1)))
        runs = np.exp(generator.normal(0, 0.03, shape))
        if kind == "heavy tails":
            runs = runs + (generator.random(shape) < 0.05) * generator.pareto(1.2, shape) * 0.3
        if kind == "bimodal rounds":
            runs = runs * (1 + 0.12 * (generator.random((ROUNDS, 1)) < 0.3))
        if kind == "bimodal runs":
            runs = runs * (1 + 0.15 * (generator.random(shape) < 0.5))
        made.append(10 * machine * block * runs)
    return made[0], made[1]


def order(a: Float64, b: Float64, _: np.random.Generator) -> Interval:
    found = paired_ratio(np.median(a, axis=1).tolist(), np.median(b, axis=1).tolist())
    assert found is not None
    return found


def all_runs(a: Float64, b: Float64, generator: np.random.Generator) -> Interval:
    """Bootstrap over runs, as if they were independent: what is usually done."""
    rows = (generator.choice(side.ravel(), (RESAMPLES, side.size)) for side in (a, b))
    first, second = (np.median(row, axis=1) for row in rows)
    return _percentiles(float(np.median(a) / np.median(b)), first / second)


def rounds(a: Float64, b: Float64, generator: np.random.Generator) -> Interval:
    """Bootstrap over rounds of the ratio of all runs' medians."""
    drawn = generator.integers(0, ROUNDS, (RESAMPLES, ROUNDS))
    first, second = (np.median(side[drawn].reshape(RESAMPLES, -1), axis=1) for side in (a, b))
    return _percentiles(float(np.median(a) / np.median(b)), first / second)


def _percentiles(ratio: float, drawn: Float64) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ratio, float(low), float(high)


def walsh(a: Float64, b: Float64, _: np.random.Generator) -> Interval:
    """Hodges and Lehmann's estimate with Wilcoxon's signed-rank interval, on log ratios."""
    logs = np.log(np.median(a, axis=1) / np.median(b, axis=1))
    i, j = np.triu_indices(ROUNDS)
    means = np.sort((logs[i] + logs[j]) / 2)
    width = 1.96 * np.sqrt(ROUNDS * (ROUNDS + 1) * (2 * ROUNDS + 1) / 24)
    rank = int(np.floor(ROUNDS * (ROUNDS + 1) / 4 - width))
    return tuple(map(float, np.exp([np.median(means), means[rank], means[-1 - rank]])))  # type: ignore[return-value]  # three of them


def student(a: Float64, b: Float64, _: np.random.Generator) -> Interval:
    """Student's t on log ratios."""
    logs = np.log(np.median(a, axis=1) / np.median(b, axis=1))
    half = 2.02 * logs.std(ddof=1) / np.sqrt(ROUNDS)
    return tuple(map(float, np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])))  # type: ignore[return-value]  # three of them


METHODS: dict[str, Callable[[Float64, Float64, np.random.Generator], Interval]] = {
    "order": order,
    "bootstrap of rounds": rounds,
    "bootstrap of runs": all_runs,
    "signed rank": walsh,
    "t": student,
}


def intervals(trials: int) -> list[dict[str, Any]]:
    """Per noise and method: shares of trials in percent. covered: the interval holds the truth;
    false: equals called faster or slower; same: equals called so; found: 5 % called slower."""
    rows = []
    for kind in NOISES:
        generator = np.random.default_rng(7)
        counts: dict[str, Counter[str]] = {name: Counter() for name in METHODS}
        for _ in range(trials):
            a, b = noise(kind, generator)
            for name, method in METHODS.items():
                interval = method(a, b, generator)
                counts[name]["covered"] += interval[1] <= 1 <= interval[2]
                equal = verdict(interval)
                counts[name]["false"] += equal in ("faster", "slower")
                counts[name]["same"] += equal == "no difference"
                ratio, low, high = (value / SLOWED for value in interval)
                counts[name]["found"] += verdict((ratio, low, high)) == "slower"
        for name, found in counts.items():
            shares = {key: found[key] / trials for key in ("covered", "false", "same", "found")}
            rows.append({"noise": kind, "method": name, **shares})
            click.echo(f"{kind:15s} {name:20s} " + "  ".join(
                f"{key} {value:6.1%}" for key, value in shares.items()))  # fmt: skip
    return rows


class Spin:
    """Takes so many ms by spinning, with a logit per stripe of the image."""

    def __init__(self, milliseconds: float, jitter: float = 0.0, seed: int = 0) -> None:
        self._ns, self._jitter = milliseconds * 1e6, jitter
        self._generator = np.random.default_rng(seed)

    def run(self, images: Float32, /) -> Float32:
        end = time.perf_counter_ns() + self._ns * np.exp(self._generator.normal(0, self._jitter))
        answer: Float32 = images[:, 0, :4, 0].copy()
        while time.perf_counter_ns() < end:
            pass
        return answer


class Slowed:
    """Another engine, and a spin after each run for a share of the time that it took."""

    def __init__(self, engine: Engine, factor: float) -> None:
        self._engine, self._factor = engine, factor

    def run(self, images: Float32, /) -> Float32:
        started = time.perf_counter_ns()
        answer = self._engine.run(images)
        end = started + self._factor * (time.perf_counter_ns() - started)
        while time.perf_counter_ns() < end:
            pass
        return answer

    def close(self) -> None:
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()


def trial(pair: Sequence[Callable[[], Engine]], seconds: float, seed: int) -> dict[str, Any]:
    """One comparison of two engines, opened anew."""
    plan = Plan(
        points=sweep(sizes=((64, 64),)),
        limits=Limits(noise=0.005, min_seconds=seconds, max_seconds=seconds),
        warmup_seconds=0.3,
        block_seconds=0.02,
        seed=seed,
    )
    subjects = [Subject(str(index), lambda _, make=make: make()) for index, make in enumerate(pair)]  # type: ignore[misc]  # a default binds it
    found = compare(subjects, plan)
    (ratio,) = found.ratios
    first = found.engines[0].measurements[0]
    return {
        "ratio": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": ratio.verdict,
        "rounds": ratio.rounds,
        "median_ms": first.host.median,
        "overhead": max(engine.overhead for engine in found.engines),
        "warnings": list(first.warnings),
    }


def trials(
    name: str, make: Callable[[int], Engine], count: int, seconds: float
) -> list[dict[str, Any]]:
    """make: the engine, given a seed. Equal and slowed pairs, each `count` times."""
    rows = []
    for kind, factor in (("equal", 1.0), ("slowed", SLOWED)):
        found = []
        for seed in range(count):
            pair: list[Callable[[], Engine]] = [
                lambda s=seed: Slowed(make(2 * s), 1.0),  # type: ignore[misc]  # a default binds it
                lambda s=seed, f=factor: Slowed(make(2 * s + 1), f),  # type: ignore[misc]  # see above
            ]
            found.append(trial(pair, seconds, seed))
        verdicts = Counter(row["verdict"] for row in found)
        rows.append({"engine": name, "kind": kind, "trials": count, "verdicts": dict(verdicts),
                     "each": found})  # fmt: skip
        told = ", ".join(f"{what} {often}" for what, often in verdicts.items())
        click.echo(f"{name:15s} {kind:7s} {count} trials: {told}")
    return rows


def overhead() -> dict[str, Any]:
    """At a spin of 10 ms, one engine alone."""
    plan = Plan(
        points=sweep(sizes=((64, 64),)),
        limits=Limits(min_seconds=5, max_seconds=5),
        warmup_seconds=0.3,
    )
    (found,) = compare([Subject("spin", lambda _: Spin(10.0))], plan).engines
    facts = timers.examine()
    row = {
        "median_ms": found.measurements[0].host.median,
        "runs": found.measurements[0].host.n,
        "overhead": found.overhead,
        "clock_resolution_ns": facts.resolution_ns,
        "clock_overhead_ns": facts.overhead_ns,
    }
    click.echo(f"overhead at {row['median_ms']:.2f} ms: {found.overhead:.3%}")
    return row


@click.command()
@click.option("--checkpoint", type=PATH, required=True, help="Of rest_nano.")
@click.option("--count", default=20, show_default=True, help="Trials of each kind.")
@click.option("--seconds", default=1.5, show_default=True, help="Of each engine in a trial.")
@click.option("--synthetic", default=500, show_default=True, help="Trials of each noise.")
@click.option("--threads", default=1, show_default=True, help="Of ONNX Runtime.")
@click.option("--output", type=PATH, required=True)
def main(
    checkpoint: Path, count: int, seconds: float, synthetic: int, threads: int, output: Path
) -> None:
    started = time.monotonic()
    assert ROUNDS >= LEAST
    with tempfile.TemporaryDirectory() as folder:
        model = verbs.export("nano", output_dir=Path(folder), checkpoint=checkpoint).path
        here = environment.examine()
        rows = intervals(synthetic)
        cost = overhead()
        found = [
            *trials("spin", lambda seed: Spin(2.0, jitter=0.02, seed=seed), count, seconds),
            *trials("rest_nano", lambda _: Session.open(model, threads=threads), count, seconds),
        ]
    record = {
        "command": "python benchmarks/harness.py --checkpoint "
        f"tests/assets/rest_nano_photos.safetensors --count {count} --seconds {seconds:g} "
        f"--synthetic {synthetic} --threads {threads} --output F.json",
        "seconds": round(time.monotonic() - started),
        "environment": here,
        "smallest_difference": SMALLEST_DIFFERENCE,
        "rounds_and_runs": [ROUNDS, RUNS],
        "intervals": rows,
        "overhead": cost,
        "trials": found,
    }
    write_text(output, to_json(record))
    click.echo(f"{output}, {record['seconds']} s")


if __name__ == "__main__":
    main()
