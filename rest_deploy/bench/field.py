"""Engines against each other at one kind of measurement: who is faster, who is level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rest_deploy.bench.record import EngineResult, Measurement, Mode, Ratio

OF_INTEREST = 1.03
"""A ratio within this of 1 is no difference that anybody would deploy another engine for."""


@dataclass(frozen=True)
class Compared:
    """Speed of one engine over another's, with its interval."""

    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        return self.low > 1 and self.ratio >= OF_INTEREST


@dataclass(frozen=True)
class Field:
    """Engines, each with one measurement. Isolated: one request after another. Saturated: each
    engine with as many in flight as give it the most images a second, be it one."""

    mode: Mode
    measured: dict[str, Measurement]
    ratios: tuple[Ratio, ...]

    def speed(self, label: str) -> float:
        """Images per second: isolated, one request after another."""
        found = self.measured[label]
        if self.mode == "isolated":
            return found.batch / found.host.median * 1e3
        return found.images_per_second

    def compare(self, one: str, other: str) -> Compared:
        """By the measured ratio, of the two or of each to a third; else by the two noises."""
        first, second = self.measured[one], self.measured[other]
        if (first.mode, *_setting(first)) == (second.mode, *_setting(second)):
            known = {
                (ratio.other, ratio.base): ratio
                for ratio in self.ratios
                if (ratio.mode, ratio.shape, ratio.threads, ratio.in_flight)
                == (first.mode, *_setting(first))
            }
            if (one, other) in known:
                found = known[one, other]
                return _judged(found.ratio, found.low, found.high, found.verdict)
            if (other, one) in known:
                found = known[other, one]
                return _judged(1 / found.ratio, 1 / found.high, 1 / found.low, found.verdict)
            for label, base in known:
                if label == one and (other, base) in known:
                    a, b = known[one, base], known[other, base]
                    return Compared(a.ratio / b.ratio, a.low / b.high, a.high / b.low)
        ratio = self.speed(one) / self.speed(other)
        spread = 1 + first.noise + second.noise
        return Compared(ratio, ratio / spread, ratio * spread)


def compete(
    candidates: Sequence[EngineResult],
    engines: Sequence[EngineResult],
    mode: Mode,
    ratios: Sequence[Ratio],
) -> Field | None:
    """Isolated: all at one shape of the smallest batch and one number of threads, those that most
    candidates have, of equals the fastest. Saturated: each at its best, of what the tables show
    where it was measured so. None where no candidate was."""
    everything = [
        (engine, found) for engine in engines if not engine.failed
        for found in engine.measurements
        if found.mode == mode and 0 < found.host.median < math.inf
    ]  # fmt: skip
    labels = {engine.label for engine in candidates}
    ours = [found for engine, found in everything if engine.label in labels]
    if not ours:
        return None
    measured: dict[str, Measurement] = {}
    if mode == "isolated":
        least = min(found.batch for found in ours)
        smallest = [found for found in ours if found.batch == least]
        settings = [_setting(found) for found in smallest]
        chosen = max(
            smallest, key=lambda found: (settings.count(_setting(found)), -found.host.median)
        )
        for engine, found in everything:
            if _setting(found) == _setting(chosen):
                measured.setdefault(engine.label, found)
    else:
        for engine, saturated in everything:
            best, found = measured.get(engine.label), most(engine.measurements, saturated)
            if best is None or found.images_per_second > best.images_per_second:
                measured[engine.label] = found
    return Field(mode, measured, tuple(ratios))


def most(measurements: Iterable[Measurement], found: Measurement) -> Measurement:
    """Of an engine's runs at the shape and threads of `found` the one with most images a second,
    isolated or with several requests in flight; `found` where none has more."""
    same = (
        other for other in measurements
        if other.mode in ("isolated", "saturated")
        and (other.shape, other.threads) == (found.shape, found.threads)
    )  # fmt: skip
    return max((found, *same), key=lambda one: one.images_per_second)


def _setting(found: Measurement) -> tuple[str, int, int]:
    return (found.shape, found.threads, found.in_flight)


def _judged(ratio: float, low: float, high: float, verdict: str) -> Compared:
    """A ratio that was called ambiguous, or no difference, is level whatever its interval."""
    if verdict in ("ambiguous", "no difference"):
        return Compared(ratio, min(low, 1.0), max(high, 1.0))
    return Compared(ratio, low, high)
