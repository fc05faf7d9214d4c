"""What this machine reaches: a large GEMM in the engine's runtime, and a copy.

Each is the best of repeated runs: other load only ever makes them slower. The GEMM is a graph of
one node, timed by the runtime's own profiler: quantizing its input does not count, nor the call.
A precision that the CPU or the runtime does not have gets no figure, and is named.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rest_deploy.bench.environment import cores
from rest_deploy.bench.record import Ceilings
from rest_deploy.contracts import HostBackend
from rest_deploy.engine import onnxruntime_profile, openvino_profile
from rest_deploy.engine.executed import Executed, Kernel
from rest_deploy.engine.openvino import Inference
from rest_deploy.errors import ArtifactError, InputError, MissingDependencyError, require

Runtime = HostBackend
"""Whose GEMM is measured."""

SIZE = 1024
"""Rows and columns of the GEMM: 2.1 GFLOP."""

CACHED = (1 << 20, 1 << 22)
"""Bytes moved by copies that stay in a cache: of a core, of all of them."""

CACHE_BYTES = 32 << 20
"""Of a last-level cache where Linux does not tell."""

LEAST_LARGE, MOST_LARGE = 64 << 20, 1 << 30


def measure(
    runtime: HostBackend, threads: int | None = None, *, seconds: float = 0.6, size: int = SIZE
) -> Ceilings:
    """threads: of the engine, None for all cores. seconds: for each of about seven figures.

    Raises `MissingDependencyError` where the runtime or onnx is not installed, `InputError` for
    more threads than there are cores.
    """
    require("onnx", "export")
    require(runtime, runtime)
    gemms = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in _precisions(runtime):
            try:
                executed = _gemm(Path(folder), runtime, precision, threads, seconds, size)
            except (MissingDependencyError, ArtifactError):  # no bf16 units, no such kernel
                continue
            found = rate(executed.kernels, precision, size)
            if found is not None:
                gemms[precision] = found
    workers = threads or cores()
    large = min(max(4 * cache_bytes(), LEAST_LARGE), MOST_LARGE)
    return Ceilings(
        gemm_gflops=gemms,
        copy_gb_per_s=copy(large, workers, seconds),
        threads=threads or 0,
        copies=tuple((moved, copy(moved, workers, seconds)) for moved in CACHED),
        absent=tuple(name for name in _precisions(runtime) if name not in gemms),
    )


def best(found: Iterable[Ceilings]) -> Ceilings:
    """Of several runtimes on one machine, with the same threads: the highest of each.

    Raises `InputError` for none, and where the threads differ.
    """
    all_of_them = tuple(found)
    if len({ceilings.threads for ceilings in all_of_them}) != 1:
        raise InputError(
            f"ceilings for {[ceilings.threads for ceilings in all_of_them]} threads cannot be "
            "merged; expected at least one, and the same threads for all"
        )
    gemms: dict[str, float] = {}
    copies: dict[int, float] = {}
    for ceilings in all_of_them:
        for precision, gflops in ceilings.gemm_gflops.items():
            gemms[precision] = max(gflops, gemms.get(precision, 0.0))
        for moved, speed in ceilings.copies:
            copies[moved] = max(speed, copies.get(moved, 0.0))
    return Ceilings(
        gemm_gflops=gemms,
        copy_gb_per_s=max(ceilings.copy_gb_per_s for ceilings in all_of_them),
        threads=all_of_them[0].threads,
        copies=tuple(sorted(copies.items())),
        absent=tuple(dict.fromkeys(
            name for ceilings in all_of_them for name in ceilings.absent if name not in gemms
        )),
    )  # fmt: skip


def rate(kernels: Iterable[Kernel], precision: str, size: int) -> float | None:
    """GFLOP/s of the kernel that took longest; None where it computes in another precision than
    the one asked for, which is then not this machine's in that runtime."""
    longest = max(kernels, key=lambda kernel: kernel.ms)
    if longest.precision != precision or longest.best_ms <= 0:
        return None
    return 2 * size**3 / longest.best_ms / 1e6


def _precisions(runtime: HostBackend) -> tuple[str, ...]:
    return ("fp32", "int8", "bf16") if runtime == "openvino" else ("fp32", "int8")


def _gemm(
    folder: Path,
    runtime: HostBackend,
    precision: str,
    threads: int | None,
    seconds: float,
    size: int,
) -> Executed:
    from rest_deploy.graph.probe import one_gemm

    path = folder / f"{precision}.onnx"
    path.write_bytes(one_gemm(size, "int8" if precision == "int8" else "fp32"))
    values = np.random.default_rng(1).standard_normal((1, 1, size, size), dtype=np.float32)
    if runtime == "openvino":
        inference: Inference = "bf16" if precision == "bf16" else "f32"
        return openvino_profile.profile(
            path, values, threads=threads, seconds=2 * seconds, inference=inference
        )
    return onnxruntime_profile.profile(path, values, threads=threads, seconds=2 * seconds)


def copy(
    moved: int, threads: int, seconds: float, clock: Callable[[], int] = time.perf_counter_ns
) -> float:
    """GB/s of NumPy copying so that `moved` bytes are read and written in all, best of several
    tries; the threads copy a part each, as an operator of a runtime does."""
    values = max(moved // 2 // 4 // threads, 1)
    parts = [(np.ones(values, np.float32), np.zeros(values, np.float32)) for _ in range(threads)]
    repeats = max(1, (32 << 20) // moved)  # a try takes milliseconds: starting it does not count
    fastest = 0.0
    end = clock() + int(seconds * 1e9)
    while not fastest or clock() < end:
        elapsed = _copied(parts, repeats, clock)
        if elapsed > 0:
            fastest = max(fastest, repeats * threads * values * 4 * 2 / elapsed)
    return fastest


def _copied(
    parts: list[tuple[np.ndarray, np.ndarray]], repeats: int, clock: Callable[[], int]
) -> int:
    """Nanoseconds from the first thread's start to the last one's end."""
    barrier = threading.Barrier(len(parts))
    spans: list[tuple[int, int]] = []

    def work(source: np.ndarray, target: np.ndarray) -> None:
        np.copyto(target, source)  # its pages are there
        barrier.wait()
        start = clock()
        for _ in range(repeats):
            np.copyto(target, source)
        spans.append((start, clock()))

    threads = [threading.Thread(target=work, args=pair) for pair in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def cache_bytes() -> int:
    """Of the last-level cache of this CPU."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=CACHE_BYTES)
