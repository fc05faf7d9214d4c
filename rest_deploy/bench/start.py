"""A cold start, and the memory of a run: both in a fresh process, where nothing is warm yet."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rest_deploy.bench.record import Start
from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError

MARK = "rest-deploy start: "
"""Before the one line of the child that is meant for us: libraries print what they like."""

SECONDS = 300.0
"""After which a child is taken for stuck."""

CHILD = """
import sys, time
began = time.monotonic_ns()
sys.path[:0] = sys.argv[2:]
import json
from rest_deploy.runtime.session import Session
imported = time.monotonic_ns()
given = json.loads(sys.argv[1])
session = Session.open(given["path"], **given["options"])
loaded = time.monotonic_ns()
import numpy as np
from rest_deploy.layout import layout_of
images = layout_of(session.metadata.input_kind).noise(tuple(given["shape"]))
prepared = time.monotonic_ns()
answers = session.run_all(images)
answered = time.monotonic_ns()
for _ in range(given["runs"] - 1):
    session.run_all(images)
from rest_deploy.bench.memory import peak_bytes
if not all(np.isfinite(answer).all() for answer in answers.values()):
    raise ValueError("the first answer is NaN or infinite")
print()
print(given["mark"] + json.dumps({"began": began, "imported": imported, "loaded": loaded,
      "prepared": prepared, "answered": answered, "peak": peak_bytes()}), flush=True)
"""
"""Moments on the monotonic clock, which all processes of a machine share."""


class _Moments(Struct, frozen=True):
    began: int
    imported: int
    loaded: int
    prepared: int
    answered: int
    peak: int


@dataclass(frozen=True)
class Ended:
    """A child that is over: its exit status, negative for a signal, and what it printed."""

    status: int
    out: str
    err: str


Run = Callable[[Sequence[str], float], Ended]
"""Command and seconds -> how it ended; raises `subprocess.TimeoutExpired`."""


def run_child(command: Sequence[str], seconds: float) -> Ended:
    """Run a command to its end; one that takes longer is killed."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def cold_start(
    path: Path,
    shape: tuple[int, int, int, int] = (1, 3, 224, 224),
    *,
    runs: int = 1,
    threads: int | None = None,
    provider: str | None = None,
    seconds: float = SECONDS,
    run: Run = run_child,
) -> Start:
    """Start Python, import the package, open the engine, answer one batch of noise.

    import_ms: of rest_deploy.runtime; load_ms: `Session.open`, with the runtime's own import;
    first_ms: the first answer. total_ms: from before the process was made to that answer, so it
    includes the interpreter's start. The file may be in the system's cache: this is the second
    start of a service, not the first after a boot. peak_bytes: of `runs` runs.
    Raises `ArtifactError` for a child that died, hung or told nothing.
    """
    options: dict[str, object] = {}
    if threads:
        options["threads"] = threads
    if provider:
        options["provider"] = provider
    given = {"path": str(path), "shape": shape, "options": options, "runs": runs, "mark": MARK}
    package = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", CHILD, msgspec.json.encode(given).decode(), package]
    started = time.monotonic_ns()
    try:
        ended = run(command, seconds)
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(
            f"{path} gave no answer in a fresh process within {seconds:g} s", hint=_again(path)
        ) from error
    moments = _moments(ended)
    if ended.status != 0 or moments is None:
        raise ArtifactError(f"{path} in a fresh process {_death(ended)}", hint=_again(path))
    return Start(
        import_ms=(moments.imported - moments.began) / 1e6,
        load_ms=(moments.loaded - moments.imported) / 1e6,
        first_ms=(moments.answered - moments.prepared) / 1e6,
        # What the measurement itself needs, its images, is left out.
        total_ms=(moments.answered - started - (moments.prepared - moments.loaded)) / 1e6,
        peak_bytes=moments.peak,
    )


def peak_of_runs(
    path: Path,
    shape: tuple[int, int, int, int],
    *,
    threads: int | None = None,
    provider: str | None = None,
    run: Run = run_child,
) -> int:
    """Peak resident bytes of a process that opens the engine and runs this shape a few times.

    Includes interpreter and runtime, which a service has too. Raises as `cold_start`.
    """
    return cold_start(path, shape, runs=3, threads=threads, provider=provider, run=run).peak_bytes


def _moments(ended: Ended) -> _Moments | None:
    for line in reversed(ended.out.splitlines()):
        if line.startswith(MARK):
            try:
                return msgspec.json.decode(line.removeprefix(MARK), type=_Moments)
            except msgspec.DecodeError:
                return None
    return None


def _death(ended: Ended) -> str:
    """How it ended, with the last line it said."""
    said = [line.strip() for line in ended.err.splitlines() if line.strip()]
    last = f": {said[-1][:200]}" if said else ""
    if ended.status < 0:
        try:
            name = signal.Signals(-ended.status).name
        except ValueError:
            name = f"signal {-ended.status}"
        memory = ", as the system does when memory is short" if name == "SIGKILL" else ""
        return f"was killed by {name}{memory}{last}"
    if ended.status:
        return f"ended with status {ended.status}{last}"
    return f"ended without a word of its times{last}"


def _again(path: Path) -> str:
    return f"rest-deploy inspect {path} shows what it is; rest-deploy verify {path} runs it here"
