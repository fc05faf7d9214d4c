"""A fresh process: one real start, and children that die in every way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rest_deploy.bench import start
from rest_deploy.bench.start import MARK, Ended, cold_start, peak_of_runs, run_child
from rest_deploy.errors import ArtifactError

MODEL = Path("m.onnx")
TIMES = '{"began":1000000,"imported":3000000,"loaded":6000000,"prepared":7000000,' \
        '"answered":9000000,"peak":4096}'  # fmt: skip


def ending(status: int = 0, out: str = "", err: str = "") -> start.Run:
    return lambda _command, _seconds: Ended(status, out, err)


def test_a_real_start(exported_nano: Path) -> None:
    found = cold_start(exported_nano, (1, 3, 32, 32), threads=1)
    assert min(found.import_ms, found.load_ms, found.first_ms) > 0
    assert found.total_ms >= found.import_ms + found.load_ms + found.first_ms
    assert found.peak_bytes > 20 << 20


def test_moments_become_times() -> None:
    found = cold_start(MODEL, run=ending(out=f"a library's banner\n{MARK}{TIMES}\nand its end\n"))
    assert (found.import_ms, found.load_ms, found.first_ms) == (2.0, 3.0, 2.0)
    assert found.peak_bytes == 4096
    assert peak_of_runs(MODEL, (1, 3, 32, 32), run=ending(out=MARK + TIMES)) == 4096


def test_what_the_child_is_told() -> None:
    told: list[str] = []

    def run(command: Sequence[str], seconds: float) -> Ended:
        told.extend(command)
        assert seconds == 7
        return Ended(0, MARK + TIMES, "")

    cold_start(MODEL, (2, 3, 64, 64), threads=3, provider="cpu", seconds=7, run=run)
    assert told[0] == sys.executable
    assert '"shape":[2,3,64,64]' in told[3]
    assert '"options":{"threads":3,"provider":"cpu"}' in told[3]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (ending(-9), "was killed by SIGKILL, as the system does when memory is short"),
        (ending(-11, err="x\nSegmentation fault\n"), "was killed by SIGSEGV: Segmentation fault"),
        (ending(-99), "was killed by signal 99"),
        (ending(1, err="Traceback\nValueError: no\n\n"), "ended with status 1: ValueError: no"),
        (ending(3, out=MARK + TIMES), "ended with status 3"),  # it died after it told
        (ending(0), "ended without a word of its times"),
        (ending(0, out=f"{MARK}{{}}"), "ended without a word"),
        (ending(0, out=f"{MARK}{TIMES[:40]}"), "ended without a word"),
    ],
)
def test_a_child_that_dies(ended: start.Run, words: str) -> None:
    with pytest.raises(ArtifactError, match="in a fresh process") as caught:
        cold_start(MODEL, run=ended)
    assert words in caught.value.message
    assert "rest-deploy verify m.onnx" in (caught.value.hint or "")


def test_a_child_that_hangs() -> None:
    def run(command: Sequence[str], seconds: float) -> Ended:
        raise subprocess.TimeoutExpired(command, seconds)

    with pytest.raises(ArtifactError, match="no answer in a fresh process within 2 s"):
        cold_start(MODEL, seconds=2, run=run)


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    """A real child: its own error is the reason."""
    with pytest.raises(ArtifactError, match=r"ended with status 1: .*no such model"):
        cold_start(tmp_path / "none.onnx")


def test_run_child_kills_what_hangs() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_child([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)


def test_run_child_keeps_strange_bytes() -> None:
    code = "import sys; sys.stdout.buffer.write(bytes([255, 65])); sys.exit(4)"
    found = run_child([sys.executable, "-c", code], 60)
    assert found.status == 4
    assert found.out.endswith("A")
