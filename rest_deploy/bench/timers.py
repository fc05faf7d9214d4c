"""Clocks: the host's steady one, what reading it costs, and the GPU's own where there is one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rest_deploy.bench.answers import Answer
from rest_deploy.runtime.execution import DeviceTimes
from rest_deploy.signature import InputKind

Clock = Callable[[], int]
"""Nanoseconds since some moment, never backwards."""

Float32 = npt.NDArray[np.float32]

STEADY: Clock = time.perf_counter_ns
"""Not set back by NTP or by hand, unlike the time of day."""

READINGS = 2000


@dataclass(frozen=True)
class ClockFacts:
    """resolution_ns: least step between two readings that differ. overhead_ns: mean cost of one
    reading; a duration contains it once."""

    resolution_ns: int
    overhead_ns: float


def examine(clock: Clock = STEADY, readings: int = READINGS) -> ClockFacts:
    """Measure a clock with itself. Raises `ValueError` for one that stands still or goes back."""
    times = [clock() for _ in range(readings)]
    steps = [after - before for before, after in itertools.pairwise(times)]
    if min(steps) < 0:
        raise ValueError(f"the clock went back by {-min(steps)} ns; expected a steady one")
    advances = sorted(step for step in steps if step > 0)
    if not advances:
        raise ValueError(f"the clock stood still for {readings} readings")
    # A coarse clock advances only now and then: the mean counts those readings too.
    return ClockFacts(advances[0], (times[-1] - times[0]) / len(steps))


class Engine(Protocol):
    """What is measured: a `runtime.session.Session`, or a wrapper of a PyTorch module."""

    def run(self, images: Float32, /) -> Float32:
        """images: (N, 3, H, W) float32, normalized -> logits (N, classes)."""


Images = npt.NDArray[np.generic]
"""As the engine takes them: see `feed_of`."""

Timed = Callable[[Images], tuple[Answer, DeviceTimes]]


def asked(engine: Engine) -> Callable[[Images], Answer]:
    """What is timed: `run`, or `run_all` of an engine that gives several outputs."""
    metadata = getattr(engine, "metadata", None)
    several = metadata is not None and len(metadata.gives) > 1
    call: Callable[[Images], Answer] = getattr(engine, "run_all" if several else "run")
    return call


def input_kind(engine: Engine) -> InputKind:
    """What the engine takes: float where it does not say."""
    kind: InputKind = getattr(getattr(engine, "metadata", None), "input_kind", "float")
    return kind


def feed_of(engine: Engine, images: Float32) -> Images:
    """Normalized images (N, 3, H, W) as the engine takes them; see `Session.feed`."""
    feed = getattr(engine, "feed", None)
    fed: Images = images if feed is None else feed(images)
    return fed


@runtime_checkable
class TimedRunner(Protocol):
    """A runner whose device has a clock of its own, like `TensorRtRunner`."""

    input_name: str
    input_dtype: str

    def infer_timed(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> tuple[dict[str, npt.NDArray[np.generic]], DeviceTimes]: ...


def device_timer(engine: Engine) -> Timed | None:
    """Every output, with the times of its device; None for engines on a CPU, which have none."""
    runner = getattr(engine, "runner", None)
    if not isinstance(runner, TimedRunner):
        return None
    timed = runner

    def run(images: Images) -> tuple[Answer, DeviceTimes]:
        feed = np.ascontiguousarray(images, dtype=timed.input_dtype)
        outputs, times = timed.infer_timed({timed.input_name: feed})
        return {
            name: output.astype(np.float32, copy=False) for name, output in outputs.items()
        }, times

    return run
