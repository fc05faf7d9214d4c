"""What an engine executed, kernel by kernel, and how long each took.

The profilers of the backends fill it: `onnxruntime_profile`, `openvino_profile`. TensorRT's belongs
beside them: its IProfiler reports the layers of a context that runs on a GPU, in ms, under the
names that `proof.py` reads from the build log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rest_deploy.errors import VerificationError

LEAST_RUNS, MOST_RUNS = 5, 60

WARM_UP = 2
"""Runs before those that count: the first ones allocate."""


@dataclass(frozen=True)
class Kernel:
    """One operation of the graph that really runs.

    precision: what it computes in ("fp32", "bf16", "int8"). parts: nodes of the file it was named
    or fused from. readers: names of the kernels that read what it makes. ms: median, best_ms: least
    of the runs; 0 for what is not executed, such as a view.
    """

    name: str
    operator: str
    precision: str
    parts: tuple[str, ...]
    readers: tuple[str, ...]
    ms: float = 0.0
    best_ms: float = 0.0


@dataclass(frozen=True)
class Executed:
    """Of `runs` runs with the profiler on. profiled_ms: median time from call to return; plain_ms:
    the same without the profiler, measured after it. backend: "onnxruntime/cpu", "openvino/cpu"."""

    backend: str
    kernels: tuple[Kernel, ...]
    runs: int
    profiled_ms: float
    plain_ms: float

    @property
    def kernel_ms(self) -> float:
        """Sum over the kernels."""
        return sum(kernel.ms for kernel in self.kernels)


def durations(call: Callable[[], object], seconds: float) -> list[float]:
    """In ms, of about `seconds` of calls, 5 to 60; it has been called `WARM_UP` times before."""
    for _ in range(WARM_UP):
        call()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST_RUNS or (len(found) < MOST_RUNS and time.perf_counter() < end):
        start = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


def over_runs(runs: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float, float]]:
    """(name, median, least) of each operation. runs: (name, ms) in the order of execution.

    Raises `VerificationError` when two runs executed different operations.
    """
    if not runs:
        raise VerificationError("the profile holds no run: nothing tells where the time went")
    names = [name for name, _ in runs[0]]
    for number, run in enumerate(runs):
        if [name for name, _ in run] != names:
            raise VerificationError(
                f"run {number} of the profile executed {len(run)} operations, run 0 {len(names)}, "
                "or others: their times cannot be put together"
            )
    return [
        (name, median(times), min(times))
        for name, times in zip(
            names, (tuple(ms for _, ms in column) for column in zip(*runs, strict=True)),
            strict=True,
        )
    ]  # fmt: skip
