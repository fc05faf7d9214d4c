from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.bench import memory


def process(folder: Path, peak: int, now: int) -> Path:
    text = f"Name:\tpython\nVmHWM:\t  {peak} kB\nVmRSS:\t  {now} kB\n"
    (folder / "status").write_text(text, encoding="ascii")
    return folder


def test_what_the_kernel_says(tmp_path: Path) -> None:
    found = process(tmp_path, 5000, 3000)
    assert memory.peak_bytes(found) == 5000 * 1024
    assert memory.resident_bytes(found) == 3000 * 1024


def test_a_reset_that_took(tmp_path: Path) -> None:
    found = process(tmp_path, 3000, 3000)
    assert memory.reset_peak(found)
    assert (found / "clear_refs").read_text() == "5"


def test_a_reset_that_was_ignored(tmp_path: Path) -> None:
    assert not memory.reset_peak(process(tmp_path, 5000, 3000))


def test_a_reset_that_was_refused(tmp_path: Path) -> None:
    (process(tmp_path, 3000, 3000) / "clear_refs").mkdir()
    assert not memory.reset_peak(tmp_path)


def test_without_proc(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    assert memory.peak_bytes(tmp_path / "none") > 10 << 20, "getrusage's"
    assert memory.resident_bytes(tmp_path / "none") == 0
    assert not memory.reset_peak(tmp_path / "none")


def test_damaged_status(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmRSS:\tmany kB\nVmHWM: 5\n", encoding="ascii")
    assert memory.resident_bytes(tmp_path) == 0


def test_memory_that_is_used_shows() -> None:
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert memory.peak_bytes() >= 64 << 20
