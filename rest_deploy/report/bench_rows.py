"""What the terminal, Markdown and HTML reports of a bench record have in common: rows and words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rest_deploy.bench import field
from rest_deploy.bench.record import EngineResult, Growth, Measurement, Mode, Ratio, Record
from rest_deploy.errors import InputError
from rest_deploy.report.bench_words import three

P99_NEEDS = 100
"""Samples below which no p99 is shown: it would be the maximum under another name."""

AGAIN = "measure again: rest-deploy bench"


@dataclass(frozen=True)
class Case:
    """What engines are compared at. threads: per operator, 0 for all cores, which goes without
    saying."""

    shape: str
    threads: int = 0

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.shape}{threads}"

    def holds(self, other: Measurement | Ratio, mode: Mode) -> bool:
        return (other.shape, other.threads, other.mode) == (self.shape, self.threads, mode)


@dataclass(frozen=True)
class Row:
    """One engine in one case. `images_per_second`: most of all runs, at `in_flight` requests;
    `ratio` is None for the base itself and where none was taken."""

    engine: EngineResult
    measured: Measurement
    images_per_second: float
    in_flight: int
    ratio: Ratio | None
    is_base: bool


@dataclass(frozen=True)
class Point:
    """Of the Pareto plot: latency in ms, relative error."""

    label: str
    latency: float
    error: float


def p99(measured: Measurement) -> str:
    """Empty where there are too few samples for one."""
    return three(measured.host.p99) if measured.host.n >= P99_NEEDS else ""


def shape_of(shape: str) -> tuple[int, ...]:
    """ "8x3x224x224" -> (8, 3, 224, 224). Raises `InputError`."""
    try:
        return tuple(int(side) for side in shape.split("x"))
    except ValueError as error:
        raise InputError(f"{shape!r} is not a shape like 8x3x224x224") from error


def sound(record: Record) -> Record:
    """The record with every engine that holds a number that is none marked as failed.

    NaN and infinity are failures of who measured, and never drawn. Raises `InputError` where they
    stand outside the engines and their ratios, for two engines of one label, and for a ratio of an
    engine that is not there.
    """
    labels = [engine.label for engine in record.engines]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"the record has several engines called {label!r}", hint=AGAIN)
    for ratio in record.ratios:
        if unknown := {ratio.base, ratio.other} - set(labels):
            raise InputError(f"the record has a ratio of {min(unknown)!r}, which is none of its "
                             f"engines: {', '.join(labels)}", hint=AGAIN)  # fmt: skip
    bad: dict[str, str] = {}
    for engine in record.engines:
        found = next(not_numbers(msgspec.to_builtins(engine)), None)
        if found is not None:
            bad[engine.label] = found
    for ratio in record.ratios:
        found = next(not_numbers(msgspec.to_builtins(ratio)), None)
        if found is not None:
            bad.setdefault(ratio.other, f"ratio.{found}")
    rest = msgspec.structs.replace(record, engines=(), ratios=())
    outside = next(not_numbers(msgspec.to_builtins(rest)), None)
    if outside is not None:
        raise InputError(f"the record holds a value that is no number: {outside}", hint=AGAIN)
    failed = {engine.label for engine in record.engines if engine.failed} | set(bad)
    engines = tuple(
        msgspec.structs.replace(
            engine,
            failed=f"no number was measured: {bad[engine.label]}",
            measurements=(),
            blocks=(),
            accuracy=None,
            start=None,
        )
        if engine.label in bad
        else engine
        for engine in record.engines
    )
    ratios = tuple(
        ratio for ratio in record.ratios if ratio.base not in failed and ratio.other not in failed
    )
    return msgspec.structs.replace(record, engines=engines, ratios=ratios)


def not_numbers(value: Any, path: str = "") -> Iterator[str]:
    """Where NaN and infinity stand: "measurements[0].host.p99 is nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from not_numbers(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from not_numbers(inner, f"{path}[{index}]")


def working(record: Record) -> tuple[EngineResult, ...]:
    """Engines that have numbers: a failed one has none that count."""
    return tuple(engine for engine in record.engines if not engine.failed)


def failures(record: Record) -> list[tuple[str, str]]:
    """(label, reason) of those that failed."""
    return [(engine.label, engine.failed) for engine in record.engines if engine.failed]


def warnings(record: Record) -> list[str]:
    """One line for all that differ in their numbers only: how many, and that with the largest."""
    groups: dict[str, list[tuple[float, str, str]]] = {}
    total = 0
    for engine in working(record):
        for measured in engine.measurements:
            total += 1
            where = f"{engine.label}, {Case(measured.shape, measured.threads)} {measured.mode}"
            for warning in dict.fromkeys(measured.warnings):
                numbers = re.findall(r"[0-9]+(?:\.[0-9]+)?", warning)
                kind = re.sub(r"[0-9]+(?:\.[0-9]+)?", "#", warning)
                kind = re.sub(r"(?:p#, )+", "", kind)  # "p95, p99" and "p99" are of one kind
                largest = float(numbers[0]) if numbers else 0.0
                groups.setdefault(kind, []).append((largest, where, warning))
    return [_together(found, total) for found in groups.values()]


def _together(found: list[tuple[float, str, str]], total: int) -> str:
    """found: (number, place, warning) of one kind; total: measurements there are."""
    _, where, warning = max(found)
    if len(found) == 1:
        return f"{where}: {warning}"
    if {other for _, _, other in found} == {warning}:
        return f"{len(found)} of {total} measurements: {warning}"
    return f"{len(found)} of {total} measurements, such as {where}: {warning}"


def growth(record: Record) -> list[Growth]:
    """Of the engines that work."""
    labels = {engine.label for engine in working(record)}
    return [row for row in record.growth if row.engine in labels]


def base_label(record: Record) -> str:
    """What the ratios are to; "" where there are none."""
    return record.ratios[0].base if record.ratios else ""


def cases(record: Record, mode: Mode | None = None) -> list[Case]:
    """What was measured, small images first, then small batches, then few threads."""
    found = {
        Case(measured.shape, measured.threads)
        for engine in working(record)
        for measured in engine.measurements
        if mode in (None, measured.mode)
    }
    return sorted(
        found, key=lambda case: (shape_of(case.shape)[2:], shape_of(case.shape), case.threads)
    )


def rows(record: Record, case: Case, mode: Mode = "isolated") -> list[Row]:
    """Engines in the record's order, one row a measurement."""
    found = []
    for engine in working(record):
        for measured in engine.measurements:
            if not case.holds(measured, mode):
                continue
            best = most(engine, measured)
            found.append(
                Row(
                    engine=engine,
                    measured=measured,
                    images_per_second=best.images_per_second,
                    in_flight=best.in_flight,
                    ratio=ratio_of(record, engine.label, measured),
                    is_base=engine.label == base_label(record),
                )
            )
    return found


def ratio_of(record: Record, label: str, measured: Measurement) -> Ratio | None:
    """The engine's ratio to the base in the same case, mode and number of requests in flight."""
    case = Case(measured.shape, measured.threads)
    same = (
        ratio
        for ratio in record.ratios
        if ratio.other == label
        and ratio.in_flight == measured.in_flight
        and case.holds(ratio, measured.mode)
    )
    return next(same, None)


def most(engine: EngineResult, measured: Measurement) -> Measurement:
    """Of all runs in the same case the one with most images a second, as the advice takes it. What
    begins at the pixels has no saturated run."""
    return field.most(engine.measurements, measured) if measured.mode == "isolated" else measured


def fastest(record: Record, case: Case) -> Row | None:
    """Least median of isolated requests."""
    return min(rows(record, case), key=lambda row: row.measured.host.median, default=None)


def points(record: Record, case: Case) -> list[Point]:
    """Of the engines whose accuracy is known and not exact: they have a place on a log axis."""
    return [
        Point(row.engine.label, row.measured.host.median, row.engine.accuracy.relative_error)
        for row in rows(record, case)
        if row.engine.accuracy is not None and row.engine.accuracy.relative_error > 0
    ]


def front(candidates: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both, fastest first (ties: the more accurate)."""
    best: list[Point] = []
    for point in sorted(candidates, key=lambda point: (point.latency, point.error)):
        if not best or point.error < best[-1].error:
            best.append(point)
    return best


def blocks(engine: EngineResult) -> list[str]:
    """In the order of the data flow, as stored."""
    return list(dict.fromkeys(block.block for block in engine.blocks))


def union(lists: Iterable[Sequence[str]]) -> list[str]:
    """All entries, each once; those that only later lists have stand behind what precedes them."""
    merged: list[str] = []
    for entries in lists:
        at = 0
        for entry in entries:
            if entry in merged:
                at = merged.index(entry) + 1
            else:
                merged.insert(at, entry)
                at += 1
    return merged
