"""Where an engine's time goes, against what this machine can do."""

from __future__ import annotations

import time
from pathlib import Path

from rest_deploy.bench import ceilings
from rest_deploy.bench.explain import Explained, examine, opened
from rest_deploy.contracts import Dims, HostBackend
from rest_deploy.verbs.progress import Progress, silent


def profile(
    model: Path,
    *,
    size: tuple[int, int],
    batch: int = 1,
    threads: int | None = None,
    backend: HostBackend | None = None,
    progress: Progress = silent,
) -> Explained:
    """Profile `model` on a batch of noise of `size` (height, width), and measure the ceilings of
    the same runtime with the same threads.

    Raises what `bench.explain.examine` raises.
    """
    shape: Dims = (batch, 3, *size)
    runtime = opened(model, shape, backend).runtime  # what cannot be profiled fails at once
    started = time.monotonic()
    limits = ceilings.measure(runtime, threads)
    progress("measured the ceilings", time.monotonic() - started)
    started = time.monotonic()
    found = examine(model, shape, threads, backend=backend, ceilings=limits)
    progress(f"profiled {found.runs} runs", time.monotonic() - started)
    return found
