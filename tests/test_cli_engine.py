"""build-engine for TensorRT as a user meets it: NVIDIA's builder is real, no GPU is needed."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from rest_deploy.artifact import read_sidecar, sidecar_path
from rest_deploy.engine import tensorrt
from tests.test_cli import CLONE, INTERRUPTIBLE, done, eventually, refused, run, untouched

pytest.importorskip("tensorrt_rtx_bindings")
ORT = ("--backend", "onnxruntime")
RTX = ("--backend", "tensorrt-rtx", "--limit", "24", "--gate-images", "22", "--target-sm", "89")


@pytest.fixture
def workspace(calibrated_nano: Path, tmp_path: Path) -> Path:
    """A folder with a good export of a trained model, calibrated."""
    return Path(shutil.copytree(calibrated_nano, tmp_path / "workspace"))


@pytest.fixture(scope="module")
def first(calibrated_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace with an INT8 engine, and what its build said. To copy."""
    folder = Path(shutil.copytree(calibrated_nano, tmp_path_factory.mktemp("first") / "workspace"))
    return folder, done("build-engine", "--int8", "--workspace", folder, *RTX)


@pytest.fixture
def built(first: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of `first`, times of its files and all."""
    return Path(shutil.copytree(first[0], tmp_path / "built"))


def test_an_int8_engine(first: tuple[Path, str], built: Path) -> None:
    """Built, proven, described; the second time it is there already; any change builds it anew."""
    workspace, said = built, first[1]
    engine = workspace / "rest_nano.int8.tensorrt-rtx.engine"
    assert str(first[0] / engine.name) in said
    assert "runs on: tensorrt-rtx " in said
    assert "compute capability 89" in said
    assert "profile 0: 1x3x32x32 to 32x3x224x224, tuned for 8x3x224x224" in said
    assert "the gate looked at the graph; the engine itself was not run here" in said
    assert (workspace / f"{engine.name}.log").stat().st_size > 100_000
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.kind == "engine"
    build = sidecar.build
    assert build is not None
    assert build.fit is not None
    assert build.obtained["qkv"] == {"int8": 5}
    assert build.obtained["pa"] == build.obtained["sr"] == {"fp16": 4}
    assert build.rest == "fp16", "on a GPU what is not INT8 computes in FP16"
    assert {row.obtained for row in build.proof if row.requested == "int8"} == {("int8",)}
    assert sidecar.command.endswith("--limit 24 --target-sm 89")

    before = engine.stat().st_mtime_ns
    again = done("build-engine", "--int8", "--workspace", workspace, *RTX)
    assert "it was there already" in again
    assert engine.stat().st_mtime_ns == before
    change = ("--max-shapes", "4x3x96x96")  # every kind of change: tests/verbs/test_engine.py
    said = done("build-engine", "--int8", "--workspace", workspace, *RTX, *change, "--no-gate")
    assert "it was there already" not in said

    shown = done("inspect", engine)
    assert "runs on: tensorrt-rtx" in shown
    assert "gate          switched off" in shown
    described = json.loads(done("inspect", sidecar_path(engine), "--json"))
    assert described["sidecar"]["build"]["fit"]["profiles"][0]["minimum"] == [1, 3, 32, 32]
    refused(run("predict", engine, engine), 4, "runs on an NVIDIA GPU, and none is here")
    data = bytearray(engine.read_bytes())
    data[1000] ^= 1
    engine.write_bytes(data)
    refused(run("predict", engine, engine), 3, "damaged or replaced", "rest-deploy build-engine")
    refused(run("inspect", engine), 3, "its sidecar describes")
    assert "it was there already" not in done(
        "build-engine", "--int8", "--workspace", workspace, *RTX, "--no-gate"
    )


EXPECTED = ("--expect-sizes", "96x160,160x96", "--expect-batches", "1-4")


def test_planned_profiles(workspace: Path) -> None:
    """The dry run says what will be built, without a file; the build is that."""
    with untouched(workspace):
        plan = json.loads(
            done("build-engine", "--fp16", "--dry-run", "--json", "--workspace", workspace, *RTX,
                 *EXPECTED)
        )  # fmt: skip
        said = done("build-engine", "--int8", "--dry-run", "--workspace", workspace, *RTX,
                    *EXPECTED, "--memory", "1")  # fmt: skip
    assert [found["maximum"] for found in plan["profiles"]] == [[4, 3, 96, 160], [4, 3, 160, 96]]
    assert "would build " in said
    assert "precision: int8, what is not quantized in fp16" in said
    assert "profile 0: 1x3x96x96 to 4x3x160x160, tuned for 2x3x160x96; about " in said
    report = json.loads(
        done("build-engine", "--fp16", "--json", "--workspace", workspace, *RTX, *EXPECTED)
    )
    fit = report["build"]["fit"]
    assert report["path"] == plan["path"]
    assert fit["profiles"] == plan["profiles"]
    assert 0.5 < max(plan["scratch_bytes"]) / fit["scratch_bytes"] < 2


def test_profiles_for_a_histogram(workspace: Path, tmp_path: Path) -> None:
    """The dry run says who is served and what is left out; the sidecar's command gives it again."""
    log = tmp_path / "a log.csv"
    log.write_text("height,width,batch,count\n96,96,4,900\n96,160,4,95\n320,320,1,5\n")
    words = ("build-engine", "--fp16", "--workspace", workspace, *RTX, "--expect-histogram", log)
    with untouched(workspace):
        said = done(*words, "--dry-run")
        plan = json.loads(done(*words, "--dry-run", "--json", "--expect-coverage", "99.5"))
    assert "profile 0: 1x3x320x320 to 1x3x320x320, tuned for 1x3x320x320; about " in said
    assert "of scratch; serves 0.50%" in said
    assert "tuned for 4x3x96x96" in said
    assert said.endswith("requests: 1000 in 3 shapes; all held by a profile\n")
    assert [found["maximum"] for found in plan["profiles"]] == [[4, 3, 96, 160]]
    assert plan["serving"]["served"] == [995]
    assert plan["serving"]["left_out"] == [
        {"height": 320, "width": 320, "batch": 1, "requests": 5, "share": 0.005}
    ]
    report = json.loads(done(*words, "--json", "--expect-coverage", "99.5"))
    assert report["build"]["fit"]["profiles"] == plan["profiles"]
    assert report["warnings"][-1] == (
        "left out, 0.50% of the requests: 1x3x320x320 (0.50%); the engine refuses them"
    )
    sidecar = read_sidecar(Path(report["path"]))
    assert sidecar is not None
    again = shlex.split(sidecar.command)
    assert again[-4:] == ["--expect-coverage", "99.5", "--target-sm", "89"]
    assert "it was there already" in done(
        *again[1:], "--workspace", workspace, "--gate-images", "22"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp8"])
def test_other_precisions(workspace: Path, precision: str) -> None:
    report = json.loads(
        done("build-engine", f"--{precision}", "--json", "--workspace", workspace, *RTX,
             "--max-shapes", "4x3x224x224")
    )  # fmt: skip
    kinds = {kind for counts in report["build"]["obtained"].values() for kind in counts}
    assert kinds == ({"fp8", "fp16"} if precision == "fp8" else {precision})
    assert report["build"]["fit"]["scratch_bytes"] > 1_000_000


def test_what_is_not_quantized(workspace: Path) -> None:
    report = json.loads(
        done("build-engine", "--int8", "--rest", "fp32", "--json", "--workspace", workspace, *RTX)
    )
    assert report["build"]["obtained"]["sr"] == {"fp32": 4}
    assert report["build"]["obtained"]["mlp"] == {"int8": 5}


@pytest.mark.slow
def test_turing_plans_int8_convolutions_in_fp16(workspace: Path) -> None:
    """Which the proof finds; nothing else would say so."""
    result = run("build-engine", "--int8", "--workspace", workspace, *RTX, "--target-sm", "75")
    refused(result, 1, "stem.conv1:stem was asked for in int8, NVIDIA planned fp16")
    assert not list(workspace.glob("*.engine"))


def test_int8_and_fp16_in_one_file(workspace: Path) -> None:
    """For builders elsewhere; the gate rounds to FP16 after every operator."""
    report = json.loads(
        done("quantize", "--int8", "--rest", "fp16", "--json", "--workspace", workspace,
             "--limit", "24", "--gate-images", "22")
    )  # fmt: skip
    onnx.checker.check_model(report["path"], full_check=True)
    assert report["build"]["gate"]["checks"][0]["value"] < 0.03
    assert {check["name"] for check in report["build"]["gate"]["checks"]} >= {
        "least range use", "most range use", "weight error",
    }  # fmt: skip
    refused(run("build-engine", "--rest", "fp16", *ORT, "--workspace", workspace), 3,
            "onnxruntime on a CPU has no fp16 kernels", "--backend tensorrt-rtx")  # fmt: skip
    refused(run("quantize", "--fp16", "--rest", "fp16", "--workspace", workspace), 3,
            "--rest goes with --int8 or --fp8")  # fmt: skip


def test_float32_under_the_name_of_fp16(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that forgot to retype: the proof refuses, nothing is published."""
    from rest_deploy.graph import precision

    monkeypatch.setattr(precision, "to_sixteen_bit", lambda *_, **__: {})
    monkeypatch.setattr(precision, "emulate", lambda *_: None)
    result = run("build-engine", "--fp16", "--workspace", workspace, *RTX)
    refused(result, 1, "does not have the precision that was asked for", "planned fp32")
    assert not list(workspace.glob("*.engine*.json"))
    assert not list(workspace.glob("*.engine"))


def test_what_is_refused_before_anything_is_done(workspace: Path) -> None:
    def no(code: int, *arguments: str, words: tuple[str, ...]) -> None:
        result = run("build-engine", "--workspace", workspace, *arguments)
        refused(result, code, *words)

    rtx = ("--backend", "tensorrt-rtx")
    with untouched(workspace):
        no(3, "--rest", "fp32", *rtx, "--target-sm", "75", words=("fp32 needs",))
        no(3, "--fp8", *rtx, "--target-sm", "86", words=("fp8 needs compute capability 89", "INT8"))
        no(3, "--int8", *rtx, "--target-sm", "90", words=("does not run on Hopper",))
        no(3, *rtx, "--min-shapes", "8x3x64x64", "--max-shapes", "4x3x64x64",
           words=("min <= opt <= max",))  # fmt: skip
        no(3, *rtx, "--max-shapes", "4x64x64", words=("expected BATCHx3xHEIGHTxWIDTH",))
        no(3, *rtx, "--refit", words=("--refit is not for TensorRT-RTX here",))
        no(3, *rtx, "--version-compatible", words=("lean runtime",))
        no(3, *rtx, "--expect-sizes", "512", "--memory", "0.1", words=("--memory allows 0.11 GB",))
        no(3, *rtx, "--expect-sizes", "16", words=("at least 32 pixels",))
        no(3, *rtx, "--expect-batches", "8-2", words=("not a range of batch sizes",))
        no(3, *rtx, "--expect-sizes", "64", "--max-shapes", "1x3x64x64", words=("one of the two",))
        log = workspace.parent / "log.csv"
        log.write_text("height,width\n224,224\n16,16\n")
        histogram = (*rtx, "--expect-histogram", str(log))
        no(3, *histogram, words=("log.csv, line 3: height is '16'",))
        no(3, *histogram, "--expect-sizes", "64", words=("--expect-sizes too: one of the two",))
        no(3, *histogram, "--max-shapes", "1x3x64x64", words=("--expect-histogram plans the",))
        no(3, *rtx, "--expect-coverage", "99", words=("without --expect-histogram",))
        no(3, *histogram, "--expect-coverage", "nan", words=("expected percent, above 0 to 100",))
        no(3, *rtx, "--timing-cache", "timings", words=("--timing-cache is not for TensorRT-RTX",))
        no(3, *ORT, "--timing-cache", "timings",
           words=("goes with TensorRT, not with onnxruntime",))  # fmt: skip
        no(3, *ORT, "--dry-run", words=("--dry-run goes with TensorRT, not with onnxruntime",))
        no(3, *ORT, "--max-shapes", "4x3x64x64",
           words=("goes with TensorRT, not with onnxruntime",))  # fmt: skip


def test_a_failed_build_keeps_the_engine_that_was_there(built: Path) -> None:
    workspace = built
    engine = workspace / "rest_nano.int8.tensorrt-rtx.engine"
    before = engine.read_bytes()
    elsewhere = workspace / "engines" / "mine.engine"
    done("build-engine", "--int8", "--workspace", workspace, *RTX, "--no-gate",
         "--save-engine", elsewhere)  # fmt: skip
    assert read_sidecar(elsewhere) is not None
    assert (elsewhere.parent / "mine.engine.log").is_file()
    result = run("build-engine", "--int8", "--workspace", workspace, *RTX, "--no-gate",
                 "--workspace-limit", "0.001")  # fmt: skip
    refused(result, 3, "needs more memory than it may use", f"all of it in {engine}.log")
    assert engine.read_bytes() == before
    assert read_sidecar(engine) is not None


def test_a_full_disk_keeps_the_engine_that_was_there(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = built
    engine = workspace / "rest_nano.int8.tensorrt-rtx.engine"
    before = engine.read_bytes()
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".engine":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run("build-engine", "--int8", "--workspace", workspace, *RTX, "--no-gate",
                 "--max-shapes", "2x3x96x96")  # fmt: skip
    refused(result, 5, "No space left on device", "free space there")
    assert engine.read_bytes() == before
    assert read_sidecar(engine) is not None


@pytest.mark.usefixtures("no_openvino")
def test_without_tensorrt(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "installed", lambda _name: False)
    with untouched(workspace):
        refused(run("build-engine", "--backend", "tensorrt", "--workspace", workspace), 4,
                "pip install 'rest-deploy[tensorrt]'")  # fmt: skip
        refused(run("build-engine", "--backend", "tensorrt-rtx", "--workspace", workspace), 4,
                "pip install 'rest-deploy[tensorrt-rtx]'")  # fmt: skip
    said = done("build-engine", "--workspace", workspace, "--limit", "24", "--no-gate")
    assert "backend: onnxruntime (not tensorrt: the package is not installed" in said


def test_ctrl_c_in_a_build(workspace: Path) -> None:
    """Exit 130 and nothing of the engine; the calibration is kept."""
    command = (
        f"{INTERRUPTIBLE}; import time; from rest_deploy.engine import tensorrt; "
        "build = tensorrt.build\n"
        "def slow(flavour, graph, options, step):\n"
        "    def wait(*words):\n"
        "        open('begun', 'w').close(); time.sleep(0.2); step(*words)\n"
        "    return build(flavour, graph, options, wait)\n"
        "tensorrt.build = slow\n"
        "from rest_deploy.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, "build-engine", "--workspace", ".", "--no-gate", *RTX],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(CLONE)},
    )  # fmt: skip
    eventually((workspace / "begun").is_file, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert not list(workspace.glob("*.engine*"))
    assert (workspace / "rest_nano.int8.calibration.json").is_file()


def test_two_builds_of_one_target_at_once(workspace: Path) -> None:
    """Each is whole or not there; the last one stays, beside its own sidecar."""
    words = [sys.executable, str(CLONE / "cli.py"), "build-engine", "--workspace", str(workspace),
             "--no-gate", *RTX]  # fmt: skip
    running = [
        subprocess.Popen([*words, "--max-shapes", f"{batch}x3x224x224"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for batch in (2, 4)
    ]  # fmt: skip
    for process in running:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert read_sidecar(workspace / "rest_nano.int8.tensorrt-rtx.engine") is not None
