"""Engines whose times are made up: they advance a clock instead of taking time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
CLASSES = 10


class FakeClock:
    """Nanoseconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        return self._now

    def pass_ms(self, milliseconds: float) -> None:
        with self._lock:
            self._now += round(milliseconds * 1e6)


def honest(images: Float32) -> Float32:
    """Logits that depend on the image: a sum over each of ten stripes."""
    stripes = np.array_split(images.reshape(len(images), -1), CLASSES, axis=1)
    return np.stack([stripe.sum(axis=1) for stripe in stripes], axis=1).astype(np.float32)


class FakeEngine:
    """times: ms that its runs take, one after another. answer: images -> logits."""

    def __init__(
        self,
        clock: FakeClock,
        times: Iterator[float] | float,
        answer: Callable[[Float32], Float32] = honest,
    ) -> None:
        self._clock = clock
        self._times = itertools.repeat(times) if isinstance(times, float) else times
        self._answer = answer
        self.runs = 0
        self.closed = False

    def run(self, images: Float32, /) -> Float32:
        self.runs += 1
        self._clock.pass_ms(next(self._times))
        return self._answer(images)

    def close(self) -> None:
        self.closed = True


def noisy(middle: float, sigma: float, seed: int) -> Iterator[float]:
    """Lognormal times around `middle` ms."""
    generator = np.random.default_rng(seed)
    while True:
        yield middle * float(np.exp(generator.normal(0.0, sigma)))
