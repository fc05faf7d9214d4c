"""What is to be measured, as data: engines, inputs, modes, and how long at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rest_deploy.bench.record import Measurement, Mode, Ratio
from rest_deploy.bench.statistics import LEAST, SMALLEST_DIFFERENCE
from rest_deploy.bench.stopping import Limits
from rest_deploy.bench.timers import Engine
from rest_deploy.contracts import SMALLEST_SIDE, Preprocessing, Struct
from rest_deploy.errors import InputError
from rest_deploy.preprocess import to_pixel_grid

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

INPUTS = 4
"""Different batches that an engine is given in turn: no answer may be remembered, and an engine
that ignores its input is found also with batch 1."""


@dataclass(frozen=True)
class Subject:
    """One engine to be measured. open: called with the threads of an operator (0: all cores), once
    for each number of threads that is asked for; what it returns is closed if it has `close`."""

    label: str
    open: Callable[[int], Engine]


class Point(Struct, frozen=True):
    """One input shape in one mode. in_flight: requests at once, 1 unless saturated."""

    batch: int
    height: int
    width: int
    mode: Mode = "isolated"
    threads: int = 0
    in_flight: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.height, self.width) < SMALLEST_SIDE:
            raise ValueError(
                f"expected a batch of at least 1 and sides of at least {SMALLEST_SIDE}, got {self}"
            )
        if self.threads < 0 or self.in_flight < 1:
            raise ValueError(f"expected threads >= 0 and in_flight >= 1, got {self}")
        if self.mode != "saturated" and self.in_flight != 1:
            raise ValueError(f"{self.mode} has one request in flight, got {self.in_flight}")

    @property
    def shape(self) -> str:
        return f"{self.batch}x3x{self.height}x{self.width}"

    def __str__(self) -> str:
        more = f", {self.in_flight} in flight" if self.mode == "saturated" else ""
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{self.shape} {self.mode}{more}{threads}"


def sweep(
    batches: tuple[int, ...] = (1,),
    sizes: tuple[tuple[int, int], ...] = ((224, 224),),
    modes: tuple[Mode, ...] = ("isolated",),
    threads: tuple[int, ...] = (0,),
    in_flight: tuple[int, ...] = (2,),
) -> tuple[Point, ...]:
    """All combinations; in_flight counts for "saturated" only. Ordered by threads first, since
    another number of them means another session."""
    return tuple(
        Point(batch=batch, height=height, width=width, mode=mode, threads=count, in_flight=flying)
        for count in threads
        for height, width in sizes
        for batch in batches
        for mode in modes
        for flying in (in_flight if mode == "saturated" else (1,))
    )


def noise_images(count: int, height: int, width: int) -> Float32:
    """(count, 3, height, width), normally distributed, the same every time. Fit for timing only:
    the power a GPU draws, and so its clock, depends on the values."""
    generator = np.random.default_rng((count, height, width))
    return generator.standard_normal((count, 3, height, width), dtype=np.float32)


def pixel_noise(preprocessing: Preprocessing) -> Callable[[int, int, int], Float32]:
    """`noise_images` brought to what 8-bit pixels can make, for engines that take pixels."""
    return lambda count, height, width: to_pixel_grid(
        noise_images(count, height, width), preprocessing
    )


@dataclass(frozen=True)
class Plan:
    """points: in this order, but those of equal threads together. warmup_seconds: at most, before
    each point. block_seconds: an engine's turn in a round; saturated_seconds: where several
    requests are in flight, and a turn has a beginning and an end without full load. min_rounds:
    before anything but time ends a comparison. instances: times that every engine is opened, in
    opposite order every other time, each for its part of the rounds: two sessions of one file
    differ by a percent or two, by where their memory lies. seed: of the order within rounds.
    base: label that the others are compared with, "" for the first. smallest: difference of
    interest. classes: that every engine must answer, 0: unchecked. images: normalized input for
    (count, height, width). photos and preprocessing: for end-to-end, (H, W, 3) uint8 RGB.
    """

    points: tuple[Point, ...]
    limits: Limits = field(default_factory=Limits)
    warmup_seconds: float = 2.0
    block_seconds: float = 0.05
    saturated_seconds: float = 0.25
    min_rounds: int = 20
    instances: int = 2
    seed: int = 0
    base: str = ""
    smallest: float = SMALLEST_DIFFERENCE
    classes: int = 0
    images: Callable[[int, int, int], Float32] = noise_images
    photos: tuple[UInt8, ...] = ()
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise InputError("nothing to measure: no shape was given")
        if any(point.mode == "end-to-end" for point in self.points) and (
            len(self.photos) < 2 or self.preprocessing is None
        ):
            raise InputError(
                f"end-to-end needs at least two photos and the model's preprocessing, got "
                f"{len(self.photos)} photos"
            )
        seconds = (self.warmup_seconds, self.block_seconds, self.saturated_seconds)
        if not all(math.isfinite(value) and value > 0 for value in (*seconds, self.smallest)):
            raise InputError(f"seconds and the smallest difference must be positive, got {self}")
        if self.instances < 1:
            raise InputError(f"expected at least one instance of an engine, got {self.instances}")
        if self.min_rounds < LEAST:
            raise InputError(f"a ratio needs at least {LEAST} rounds, got {self.min_rounds}")

    def part(self) -> Limits:
        """The limits of one instance that is not the last: the last is held to all of them."""
        whole, count = self.limits, self.instances
        return Limits(
            noise=whole.noise * math.sqrt(count),
            min_seconds=whole.min_seconds / count,
            max_seconds=whole.max_seconds / count,
            min_samples=max(LEAST, whole.min_samples // count),
            max_samples=max(LEAST, whole.min_samples // count, whole.max_samples // count),
        )


class Measured(Struct, frozen=True):
    """One engine. failed: why it has no numbers, "" when it has. skipped: points that it refused
    before it ran (no profile holds the shape), and why. overhead: seconds that the harness itself
    took, per second of inference; not counted where several requests are in flight."""

    label: str
    failed: str = ""
    measurements: tuple[Measurement, ...] = ()
    skipped: tuple[str, ...] = ()
    overhead: float = 0.0


class Comparison(Struct, frozen=True):
    """Engines in the order they were given; ratios to the base, of those that did not fail."""

    engines: tuple[Measured, ...]
    ratios: tuple[Ratio, ...] = ()
