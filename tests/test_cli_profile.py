"""rest-deploy profile, as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from rest_deploy.bench import ceilings
from rest_deploy.bench.explain import Explained, LayerTime
from rest_deploy.bench.record import BlockTime, Ceilings
from rest_deploy.report.profile import profile as render
from tests.serve.engines import onnx_for
from tests.test_cli import done, refused, run

LIMITS = Ceilings(
    gemm_gflops={"fp32": 100.0}, copy_gb_per_s=10.0, threads=1, copies=((1 << 20, 40.0),)
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_a, **_k: LIMITS)


def test_the_report(exported_nano: Path) -> None:
    said = done("profile", exported_nano, "--size", "64x96", "--batch", "2", "--threads", "1")
    lines = said.splitlines()
    assert "on onnxruntime/cpu, 2x3x64x96, 1 thread, median of" in lines[0]
    assert max(map(len, lines[1:])) <= 100
    first = [line.split()[0] for line in lines if line.strip()]
    for name in ("stem", "stage1", "patch4", "head", "all", "share", "GFLOP/s", "costliest"):
        assert name in first
    assert "ceilings: GEMM fp32 100 GFLOP/s; copy 1 MiB 40, from memory 10 GB/s" in said
    assert "in no block of the network: 0.0% of the time" in said


def test_a_ceiling_that_is_not_here(exported_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(LIMITS, absent=("bf16",))
    monkeypatch.setattr(ceilings, "measure", lambda *_a, **_k: limits)
    said = done("profile", exported_nano, "--size", "64", "--backend", "openvino")
    assert "on openvino/cpu, 1x3x64x64" in said
    assert "fp32 100 GFLOP/s (this machine has no bf16 GEMM); copy" in said


def test_bf16_without_its_units_fails_at_once(
    exported_nano: Path, tmp_path: Path, openvino_bf16: Callable[[bool], None]
) -> None:
    build = {"backend": "openvino", "precision": "bf16"}
    engine = onnx_for(exported_nano, tmp_path / "x.onnx", **build)
    openvino_bf16(False)
    refused(run("profile", engine, "--size", "64"), 4, "this CPU has no bf16 units")
    openvino_bf16(True)
    assert "on openvino/cpu" in done("profile", engine, "--size", "64")


def test_json(exported_nano: Path) -> None:
    found = json.loads(done("profile", exported_nano, "--size", "64", "--json"))
    assert (found["height"], found["batch"], found["threads"]) == (64, 1, 0)
    assert found["ceilings"]["gemm_gflops"] == {"fp32": 100.0}
    assert sum(time["ms"] for time in found["blocks"]) == pytest.approx(found["kernel_ms"])


def test_what_cannot_be_profiled(exported_nano: Path, tmp_path: Path) -> None:
    engine = tmp_path / "x.engine"
    engine.write_bytes(b"plan")
    refused(run("profile", engine), 3, "expected .onnx", "trtexec")
    refused(run("profile", tmp_path / "none.onnx"), 3, "no such model")
    refused(run("profile", exported_nano, "--size", "31"), 3, "at least 32")
    assert run("profile", exported_nano, "--size", "64,96").exit_code == 2
    assert run("profile", exported_nano, "--backend", "tensorrt").exit_code == 2


def test_the_numbers_of_the_report() -> None:
    """4e8 FLOPs in 5 ms of 8; 2 ms floor. What is not known is a dash."""
    found = Explained(
        model="m.onnx", backend="onnxruntime/cpu", batch=1, height=224, width=224, threads=0,
        runs=9, kernel_ms=8.0, profiled_ms=12.0, plain_ms=5.0, nowhere=0.25,
        blocks=(
            BlockTime(block="stage1.0", kind="gemm", ms=2.0, flops=3e8, bytes=1e6, floor_ms=1.5),
            BlockTime(block="stage1.1", kind="gemm", ms=3.0, flops=1e8, bytes=1e6, floor_ms=0.5),
            BlockTime(block="other", kind="other", ms=3.0),
        ),
        costliest=(
            LayerTime(name="x" * 80, operator="MatMul", block="stage1.1", kind="gemm",
                      precision="int8", ms=3.0, flops=1e8, bytes=1e6, floor_ms=0.5),
        ),
        warnings=("it is late",),
    )  # fmt: skip
    said = render(found)
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert rows["stage1"] == ["5.00", "-", "5.00", "62.5%", "80.0", "40%"]
    assert rows["all"] == ["5.00", "3.00", "8.00", "100.0%", "50.0", "25%"]
    assert rows["share"] == ["62.5%", "37.5%"]
    assert rows["x" * 37 + "…"] == ["MatMul", "int8", "3.000", "37.5%", "33.3", "17%"]
    assert "sum of the kernels 8.00 ms, 160% of the 5.00 ms that a run takes without" in said
    assert "in no block of the network: 25.0% of the time" in said
    assert "ceilings:" not in said
    assert said.endswith("warning: it is late")
