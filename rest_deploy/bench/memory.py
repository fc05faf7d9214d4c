"""Peak resident memory of this process, and its reset where the kernel allows it."""

from __future__ import annotations

import sys
from pathlib import Path

SELF = Path("/proc/self")

RESET = "5"
"""Written to clear_refs it sets the peak back to what is resident now (proc(5), Linux 4.0)."""


def peak_bytes(process: Path = SELF) -> int:
    """The most memory that was resident since the process began, or since `reset_peak`.

    VmHWM of /proc/self/status, as exact as the kernel keeps it (some pages a core). Elsewhere what
    getrusage says, which cannot be reset. 0 where nothing tells.
    """
    return _status(process, "VmHWM") or _getrusage()


def resident_bytes(process: Path = SELF) -> int:
    """What is resident now; 0 where nothing tells."""
    return _status(process, "VmRSS")


def reset_peak(process: Path = SELF) -> bool:
    """Let the peak begin anew. False where it stays: then `peak_bytes` includes what was before.

    Some sandboxes take the write and do nothing, so the peak is looked at afterwards.
    """
    try:
        (process / "clear_refs").write_text(RESET, encoding="ascii")
    except OSError:
        return False
    peak, now = _status(process, "VmHWM"), resident_bytes(process)
    return peak > 0 and peak <= 1.05 * now


def _status(process: Path, key: str) -> int:
    try:
        text = (process / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if name == key and len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            return int(words[0]) * 1024
    return 0


def _getrusage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
