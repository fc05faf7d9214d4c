"""What the machine did while it was measured: other load, throttling, a falling clock.

Two looks at the kernel's counters and a pure comparison. What a system does not tell is None and
gives no warning. GPU clocks are not looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from rest_deploy.contracts import Struct

ROOT = Path("/")

OTHERS = 0.2
"""Cores that other programs may keep busy; a desktop at rest stays below."""

STOLEN = 0.01
"""Of the time of all cores, that a hypervisor gave to other machines."""

SLOWER_CLOCK = 0.1
"""Relative fall of the fastest core's clock."""

SHORTEST = 0.3
"""Seconds between two looks below which counters of 10 ms say nothing."""


BEGINNINGS = ("other programs", "the hypervisor", "the container", "the CPU's clock")
"""Of the warnings made here, by which they are found among others."""


def about_machine(warning: str) -> bool:
    """Whether a stored warning is one of `warnings`."""
    return warning.startswith(BEGINNINGS)


class Look(Struct, frozen=True):
    """Counters since the machine started. cores: that the counters are of; busy, steal, own:
    seconds of CPU, of all programs, of the hypervisor's others, of this process; throttled: times
    that the container ran out of its share; mhz: clock of the fastest core."""

    at: float
    own: float
    cores: int = 0
    busy: float | None = None
    steal: float | None = None
    throttled: int | None = None
    mhz: float | None = None


def look(root: Path = ROOT, clock: Callable[[], float] = time.monotonic) -> Look:
    """Read the counters. root: of the file system, for tests."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    cores, busy, steal = _stat(root / "proc/stat")
    return Look(
        at=clock(), own=own, cores=cores, busy=busy, steal=steal,
        throttled=_throttled(root), mhz=_mhz(root),
    )  # fmt: skip


def warnings(before: Look, after: Look) -> tuple[str, ...]:
    """In plain words, what between two looks makes the times doubtful."""
    seconds, found = after.at - before.at, []
    if seconds >= SHORTEST:
        if before.busy is not None and after.busy is not None:
            others = ((after.busy - before.busy) - (after.own - before.own)) / seconds
            if others > OTHERS:
                found.append(
                    f"other programs kept {others:.1f} of {after.cores} cores busy: close them and "
                    "measure again"
                )
        if before.steal is not None and after.steal is not None and after.cores:
            stolen = (after.steal - before.steal) / (seconds * after.cores)
            if stolen > STOLEN:
                found.append(
                    f"the hypervisor gave {stolen:.1%} of the time to other machines".replace(
                        "%", " %"
                    )
                )
    if before.throttled is not None and after.throttled is not None:
        times = after.throttled - before.throttled
        if times > 0:
            found.append(
                f"the container was throttled {times} times: its CPU quota is below its threads"
            )
    if before.mhz and after.mhz and after.mhz < before.mhz * (1 - SLOWER_CLOCK):
        found.append(
            f"the CPU's clock fell from {before.mhz:.0f} to {after.mhz:.0f} MHz while measuring"
        )
    return tuple(found)


def _stat(path: Path) -> tuple[int, float | None, float | None]:
    """Cores, busy and stolen seconds of /proc/stat (proc_stat(5)); guest time is within user."""
    lines = _text(path).splitlines()
    cores = sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines)
    total = next((line.split()[1:] for line in lines if line.startswith("cpu ")), [])
    if len(total) < 8 or not all(word.isdigit() for word in total[:8]):
        return cores, None, None
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, total[:8])
    tick = os.sysconf("SC_CLK_TCK")
    return cores, (user + nice + system + irq + soft) / tick, steal / tick


def _throttled(root: Path) -> int | None:
    """Periods in which the control group used up its quota: version 2, else version 1."""
    for place in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"):
        for line in _text(root / place).splitlines():
            key, _, value = line.partition(" ")
            if key == "nr_throttled" and value.strip().isdigit():
                return int(value)
    return None


def _mhz(root: Path) -> float | None:
    """Of the fastest core: the others may be idle."""
    found = [
        int(text) / 1000
        for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
        if (text := _text(path / "scaling_cur_freq").strip()).isdigit()
    ]
    if not found:
        found = [
            float(line.partition(":")[2])
            for line in _text(root / "proc/cpuinfo").splitlines()
            if line.startswith("cpu MHz")
        ]
    return max(found, default=None)


def _text(path: Path) -> str:
    """Of a file that not every system has, or lets everybody read; "" then."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
