from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from rest_deploy.bench.watch import Look, about_machine, look, warnings

QUIET = Look(at=0.0, own=0.0, cores=2, busy=100.0, steal=5.0, throttled=3, mhz=3000.0)
LATER = replace(QUIET, at=10.0, own=15.0, busy=115.5, mhz=2900.0)


def test_a_quiet_machine() -> None:
    assert warnings(QUIET, LATER) == ()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("busy", 130.0, "other programs kept 1.5 of 2 cores busy"),
        ("steal", 6.0, "the hypervisor gave 5.0 % of the time to other machines"),
        ("throttled", 7, "the container was throttled 4 times"),
        ("mhz", 2000.0, "the CPU's clock fell from 3000 to 2000 MHz"),
    ],
)
def test_each_disturbance(field: str, value: float, words: str) -> None:
    (warning,) = warnings(QUIET, replace(LATER, **{field: value}))
    assert about_machine(warning)
    assert warning.startswith(words)


def test_other_warnings_are_not_about_the_machine() -> None:
    assert not about_machine("60 runs: p99 is the maximum; p99 needs 100 runs")


def test_what_the_system_does_not_tell() -> None:
    bare = Look(at=0.0, own=0.0)
    assert warnings(bare, replace(bare, at=10.0)) == ()
    assert warnings(QUIET, replace(bare, at=10.0)) == ()


def test_too_short_to_say() -> None:
    assert warnings(QUIET, replace(LATER, at=0.1, own=0.0, busy=101.0)) == ()


def written(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_counters_are_read(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    cpu = f"{tick} {2 * tick} {3 * tick} 900 900 {4 * tick} {5 * tick} {6 * tick} 0 0"
    written(tmp_path, "proc/stat", f"cpu  {cpu}\ncpu0 1 2\ncpu1 1 2\nintr 5\n")
    written(tmp_path, "sys/fs/cgroup/cpu.stat", "nr_periods 9\nnr_throttled 4\n")
    for core, khz in enumerate((1_000_000, 2_500_000)):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        written(tmp_path, f"{folder}/scaling_cur_freq", f"{khz}\n")
    found = look(tmp_path, clock=lambda: 7.0)
    assert (found.at, found.cores, found.busy, found.steal) == (7.0, 2, 15.0, 6.0)
    assert (found.throttled, found.mhz) == (4, 2500.0)


def test_other_places_of_the_counters(tmp_path: Path) -> None:
    written(tmp_path, "sys/fs/cgroup/cpu/cpu.stat", "nr_throttled 6\n")
    written(tmp_path, "proc/cpuinfo", "processor: 0\ncpu MHz\t\t: 2445.4\ncpu MHz : 2000.0\n")
    found = look(tmp_path)
    assert (found.throttled, found.mhz) == (6, 2445.4)
    assert (found.busy, found.steal) == (None, None)


def test_nothing_there(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert (found.cores, found.busy, found.throttled, found.mhz) == (0, None, None, None)
    written(tmp_path, "proc/stat", "cpu what is this\n")
    assert look(tmp_path).busy is None
