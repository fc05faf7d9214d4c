from __future__ import annotations

import os
from pathlib import Path

import pytest

from rest_deploy.bench import environment
from rest_deploy.bench.compare import machine_differences
from rest_deploy.bench.environment import cores, examine, versions

INTEL = """processor : 0
cpu family : 6
model : 143
model name : Intel(R) Xeon(R) Platinum 8481C
stepping : 8
flags : fpu avx2 avx512f avx512_vnni amx_int8 sse

processor : 1
model name : another
"""
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm\n"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


def test_a_server(tmp_path: Path) -> None:
    root = written(tmp_path, {
        "proc/cpuinfo": INTEL,
        "proc/meminfo": "MemTotal:       16393244 kB\nMemFree: 1 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/memory.max": "max\n",
    })  # fmt: skip
    found = examine(root, gpus=lambda: ("NVIDIA L4",))
    assert found.cpu == "Intel(R) Xeon(R) Platinum 8481C (6/143/8)"
    assert found.features == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert found.memory_bytes / 2**30 == 15.75
    assert (found.cores, found.governor, found.gpus) == (4, "powersave", ("NVIDIA L4",))
    assert found.packages["numpy"]
    assert "onnxruntime-gpu" not in found.packages


def test_an_arm(tmp_path: Path) -> None:
    found = examine(written(tmp_path, {"proc/cpuinfo": ARM}), gpus=tuple)
    assert found.features == ("asimddp", "i8mm")
    assert found.cpu


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    found = examine(tmp_path, gpus=tuple)
    assert (found.features, found.memory_bytes, found.governor) == ((), 0, "")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "800000 100000\n"}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_cores_of_a_container(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    written(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert cores(tmp_path) == expected


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_of_a_container(tmp_path: Path, name: str) -> None:
    root = written(tmp_path, {"proc/meminfo": "MemTotal: 16393244 kB\n",
                              f"sys/fs/cgroup/{name}": f"{2 << 30}\n"})  # fmt: skip
    assert examine(root, gpus=tuple).memory_bytes == 2 << 30


def test_versions_without_importing() -> None:
    assert versions(("numpy", "no-such-package-here")).keys() == {"numpy"}


def test_no_gpu_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from rest_deploy.errors import MissingDependencyError

    def none() -> None:
        raise MissingDependencyError("no driver")

    monkeypatch.setattr(environment, "Driver", none)
    assert examine().gpus == ()


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from rest_deploy.cuda_driver import Gpu

    class Driver:
        def cuda_version(self) -> tuple[int, int]:
            return 13, 0

        def count(self) -> int:
            return 1

        def gpu(self, _: int) -> Gpu:
            return Gpu(name="NVIDIA H100", memory=80 << 30, compute_capability=(9, 0))

    monkeypatch.setattr(environment, "Driver", Driver)
    monkeypatch.setattr(environment, "_driver_version", lambda: "")
    assert examine().gpus == ("NVIDIA H100, 80 GiB, driver for CUDA 13.0",)


def test_the_driver_names_itself(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n"
    written(tmp_path, {"proc/driver/nvidia/version": text})
    assert environment._driver_version(tmp_path) == "580.82.07"
    assert environment._driver_version(tmp_path / "none") == ""


def test_this_machine_is_like_itself() -> None:
    assert examine().likeness() == examine().likeness()


def test_thread_settings_make_it_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(environment.VARIABLES)]:
        monkeypatch.delenv(name)
    plain = examine()
    assert plain.variables == {}
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    passive = examine()
    assert passive.variables == {"OMP_WAIT_POLICY": "PASSIVE"}
    (told,) = machine_differences(plain, passive)
    assert told == "environment without thread settings and OMP_WAIT_POLICY=PASSIVE"
