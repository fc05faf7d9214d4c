"""export, build-engine --int8 and predict on a CPU of 2013, whatever this one is: Haswell, AVX2
without VNNI, as QEMU computes it instruction by instruction.

Slow: minutes a command. Debian's qemu-user has the program; the Linux below is this machine's, so
the /proc/cpuinfo of such a CPU is laid over its own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rest_deploy import machine
from rest_deploy.artifact import read_sidecar
from rest_deploy.errors import installed
from tests.conftest import TRAINED_WEIGHTS
from tests.quant.test_dataset import photo_like
from tests.test_cli import done

QEMU = shutil.which("qemu-x86_64")
CPU = "Haswell,-hle,-rtm"
FLAGS = "fpu sse4_1 sse4_2 avx fma avx2"
FEW = ("--limit", "16", "--gate-images", "16")  # fewer to calibrate on fail the gate
ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        QEMU is None or platform.machine() != "x86_64",
        reason="apt-get install qemu-user; on x86-64, since these are this machine's packages",
    ),
]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Python's arguments -> what it prints. An instruction beyond AVX2 would end it (SIGILL)."""
    below = tmp_path_factory.mktemp("below")
    (below / "proc").mkdir()
    (below / "proc/cpuinfo").write_text(
        "".join(
            f"processor\t: {core}\nmodel name\t: emulated Haswell\nflags\t\t: {FLAGS}\n\n"
            for core in range(os.cpu_count() or 1)
        )
    )

    def run(*arguments: object) -> str:
        assert QEMU is not None
        ended = subprocess.run(
            [QEMU, "-cpu", CPU, "-L", below, sys.executable, *map(str, arguments)],
            capture_output=True, text=True, check=False, cwd=ROOT, timeout=3600,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
        return ended.stdout

    return run


@pytest.fixture(scope="module")
def workspace(emulated: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the export that was made on the old CPU."""
    folder = tmp_path_factory.mktemp("emulated")
    emulated("cli.py", "export", "--variant", "nano", "--checkpoint", TRAINED_WEIGHTS,
             "--workspace", folder)  # fmt: skip
    return folder


def test_it_is_the_old_cpu(emulated: Run) -> None:
    """Else the tests below say nothing: of /proc/cpuinfo, and of the CPU as OpenVINO asks it."""
    said = emulated("-c", "from rest_deploy import machine; print(*machine.cpu().features)")
    assert said.split() == ["avx2", "fma"]
    assert machine.instruction_set(said.split()) == "AVX2 without VNNI"
    if installed("openvino"):
        script = "import openvino as o; print(o.Core().get_property('CPU', 'FULL_DEVICE_NAME'))"
        assert "Haswell" in emulated("-c", script)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_from_checkpoint_to_label(
    backend: str, emulated: Run, workspace: Path, tmp_path: Path
) -> None:
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    emulated("cli.py", "build-engine", "--int8", "--backend", backend, "--workspace", workspace,
             *FEW)  # fmt: skip
    engine = workspace / f"rest_nano.int8.{backend}.onnx"
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.gate is not None
    assert sidecar.build.gate.passed
    assert "int8" in {kind for counts in sidecar.build.obtained.values() for kind in counts}
    assert sidecar.build.sums
    assert all(found.exact for found in sidecar.build.sums)

    photos = photo_like(tmp_path / "photos", 4)
    asked = ("predict", engine, *photos, "--top", "22", "--json")
    there, here = (json.loads(said) for said in (emulated("cli.py", *asked), done(*asked)))
    for old, own in zip(there["images"], here["images"], strict=True):
        assert old["predictions"][0]["label"] == own["predictions"][0]["label"]
        first, second = ({one["index"]: one["probability"] for one in found["predictions"]}
                         for found in (old, own))  # fmt: skip
        assert len(first) == 22
        assert first == pytest.approx(second, abs=5e-3)
