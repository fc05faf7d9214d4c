"""The machine and its state as a record keeps them. Packages are looked up, not imported."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from rest_deploy import machine
from rest_deploy.bench.record import Environment
from rest_deploy.bench.watch import ROOT
from rest_deploy.cuda_driver import Driver
from rest_deploy.errors import MissingDependencyError

PACKAGES = (
    *("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "torch"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu13"),
    *("onnxruntime-ep-nv-tensorrt-rtx-cu13", "cuda-python", "cuda-bindings", "pycuda"),
)

VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ORT_", "OV_CPU_")
"""Beginnings of names. OMP_WAIT_POLICY=PASSIVE alone makes torch.compile's code five times slower:
hundreds of short parallel loops, each waiting to be woken."""

MEMORY_STEP = 1 << 28
"""Bytes to which the memory is rounded: a kernel update must not make it another machine."""


def examine(root: Path = ROOT, gpus: Callable[[], tuple[str, ...]] | None = None) -> Environment:
    """This machine now. root: of the file system; gpus: instead of the driver's, for tests."""
    processor = machine.cpu(root)
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has none
        load = 0.0
    return Environment(
        cpu=processor.name,
        cores=cores(root),
        features=processor.features,
        memory_bytes=_memory(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpus=(gpus or _gpus)(),
        packages=versions(),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        load=round(load, 2),
        variables={
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(VARIABLES)
        },
    )


def cores(root: Path = ROOT) -> int:
    """Cores this process may use: by affinity, and by the container's quota, rounded up."""
    ours = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        ours = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return max(1, min(ours, math.ceil(quota))) if quota else ours


def versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _quota(root: Path) -> float:
    """Of CPU time by the control group, in cores; 0 for none. cpu.max of version 2, else 1's."""
    groups = root / "sys/fs/cgroup"
    words = _text(groups / "cpu.max").split()
    if len(words) != 2:
        words = [
            _text(groups / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
        return int(words[0]) / int(words[1])
    return 0.0


def _memory(root: Path) -> int:
    """Of the machine, or what the control group allows of it."""
    words = _field(_text(root / "proc/meminfo"), "MemTotal").split()
    total = int(words[0]) * 1024 if words and words[0].isdigit() else 0
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _text(root / "sys/fs/cgroup" / name).strip()
        if limit.isdigit():
            total = min(total, int(limit)) if total else int(limit)
            break
    return round(total / MEMORY_STEP) * MEMORY_STEP


def _gpus() -> tuple[str, ...]:
    """Name, memory and the newest CUDA of the driver; nothing where there is no GPU."""
    try:
        driver = Driver()
        major, minor = driver.cuda_version()
        found = [driver.gpu(ordinal) for ordinal in range(driver.count())]
    except MissingDependencyError:
        return ()
    version = _driver_version() or f"for CUDA {major}.{minor}"
    return tuple(f"{gpu.name}, {gpu.memory / 2**30:.0f} GiB, driver {version}" for gpu in found)


def _driver_version(root: Path = ROOT) -> str:
    """Like 580.82.07, from the kernel module; "" where it does not tell."""
    words = _text(root / "proc/driver/nvidia/version").split()
    return next((word for word in words if word.count(".") >= 1 and word[:1].isdigit()), "")


def _field(text: str, key: str) -> str:
    """Of `key : value` lines the first with that key; "" without."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
