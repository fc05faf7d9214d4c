from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.bench.timers import STEADY, device_timer, examine
from rest_deploy.runtime.execution import DeviceTimes
from rest_deploy.runtime.tensorrt import TensorRtRunner
from tests.doubles.engines import FakeClock, FakeEngine


def ticking(step: int, every: int = 1) -> Callable[[], int]:
    """Advances by `step` ns at every `every`-th reading."""
    state = {"reads": -1}

    def clock() -> int:
        state["reads"] += 1
        return state["reads"] // every * step

    return clock


def test_a_fine_clock() -> None:
    facts = examine(ticking(40))
    assert (facts.resolution_ns, facts.overhead_ns) == (40, 40.0)


def test_a_coarse_clock() -> None:
    """One reading is cheaper than the step it cannot see below."""
    facts = examine(ticking(1000, every=10), readings=2001)
    assert (facts.resolution_ns, facts.overhead_ns) == (1000, 100.0)


def test_clocks_that_are_none() -> None:
    with pytest.raises(ValueError, match="stood still"):
        examine(lambda: 7)
    with pytest.raises(ValueError, match="went back by 3 ns"):
        examine(ticking(-3))


def test_the_clock_of_this_machine() -> None:
    assert examine(STEADY, readings=100).resolution_ns > 0


class Runner:
    input_name, input_dtype = "image", "float16"

    def infer_timed(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> tuple[dict[str, npt.NDArray[np.generic]], DeviceTimes]:
        assert feeds["image"].dtype == np.float16
        return {"logits": feeds["image"].sum(axis=(1, 2))}, DeviceTimes(0.1, 2.0, 0.2, 0.3)


class Session(FakeEngine):
    runner = Runner()


def test_a_device_with_a_clock() -> None:
    timed = device_timer(Session(FakeClock(), 1.0))
    assert timed is not None
    answer, times = timed(np.ones((1, 3, 4, 4), np.float32))
    assert isinstance(answer, dict)
    assert {name: array.dtype for name, array in answer.items()} == {"logits": np.float32}
    assert times == DeviceTimes(h2d=0.1, compute=2.0, d2h=0.2, enqueue=0.3)


def test_a_device_without() -> None:
    assert device_timer(FakeEngine(FakeClock(), 1.0)) is None


def test_the_real_runner_has_it() -> None:
    assert hasattr(TensorRtRunner, "infer_timed")
