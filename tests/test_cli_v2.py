"""ResT v2 through the same commands as v1; see test_cli.py for the helpers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rest_deploy import machine
from rest_deploy.artifact import read_sidecar
from rest_deploy.contracts import Build
from rest_deploy.errors import installed
from tests.test_cli import done

FEW = ("--limit", "24", "--gate-images", "22")
GEMMS = {"qkv": 14, "proj": 5, "mlp": 10, "head": 1}
"""q, k and v of five blocks, one without q."""


@pytest.fixture
def workspace(trained_v2_nano: Path, tmp_path: Path) -> Path:
    """A folder with a good export of a trained model."""
    folder = tmp_path / "workspace"
    shutil.copytree(trained_v2_nano.parent, folder)
    return folder


def built(path: Path) -> Build:
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.gate is not None
    assert sidecar.build.gate.passed
    return sidecar.build


def test_what_is_told_of_it(workspace: Path) -> None:
    model = workspace / "restv2_nano.onnx"
    shown = done("inspect", model)
    assert "v2-nano (restv2_nano), 22 classes" in shown
    assert "opset 20, no InstanceNorm" in shown
    said = done("verify", model, "--sizes", "97x131,64", "--batches", "2")
    assert "PASS: relative error at most" in said
    assert "bound 1e-05" in said


def test_int8_for_onnxruntime(workspace: Path) -> None:
    done("build-engine", "--int8", "--backend", "onnxruntime", "--workspace", workspace, *FEW)
    build = built(workspace / "restv2_nano.int8.onnxruntime.onnx")
    for role in ("qkv", "proj", "mlp"):
        assert build.obtained[role] == {"int8": GEMMS[role]}
    assert (build.obtained["up"], build.obtained["sr"]) == ({"float": 5}, {"float": 4})
    assert "stem.conv2:stem" in build.float_places


@pytest.mark.skipif(not installed("openvino"), reason="OpenVINO is not installed")
def test_int8_for_openvino(workspace: Path) -> None:
    done("build-engine", "--int8", "--backend", "openvino", "--workspace", workspace, *FEW)
    engine = workspace / "restv2_nano.int8.openvino.onnx"
    build = built(engine)
    exact = machine.adds_bytes_exactly(machine.features_for("openvino"))
    assert build.recipe == ("int8-openvino" if exact else "int8")
    for role, count in (GEMMS | {"stem": 3, "patch": 3}).items():
        assert build.obtained[role] == {"int8": count}
    assert build.obtained["up"] == {"float": 5}
    assert build.obtained["scores"] == ({"int8": 5} if exact else {"float": 5})
    assert build.obtained["context"] == ({"int8": 1, "float": 4} if exact else {"float": 5})
    assert "PASS" in done("verify", engine, "--sizes", "97x131", "--batches", "8")


def test_fp16(workspace: Path) -> None:
    """Rounded after every operator, which is what a GPU does at most."""
    report = json.loads(done("quantize", "--fp16", "--workspace", workspace, "--json", *FEW))
    assert report["path"] == str(workspace / "restv2_nano.fp16.onnx")
    checks = report["build"]["gate"]["checks"]
    assert all(check["passed"] for check in checks)
    assert report["passes"]["level"] == 0


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_plan_of_nvidias(workspace: Path, precision: str) -> None:
    """The proof per block and role is part of the build: no engine without it."""
    pytest.importorskip("tensorrt_rtx_bindings")
    done("build-engine", f"--{precision}", "--workspace", workspace, *FEW, "--backend",
         "tensorrt-rtx", "--target-sm", "89")  # fmt: skip
    build = built(workspace / f"restv2_nano.{precision}.tensorrt-rtx.engine")
    proven = {(row.block, row.role): (row.requested, row.obtained) for row in build.proof}
    assert all(obtained == (requested,) for requested, obtained in proven.values())
    assert proven["stage1.0", "up"] == ("fp16", ("fp16",))
    assert proven["stage1.0", "proj"][0] == precision
    assert sum(role == "up" for _, role in proven) == 5


def test_lint_finds_nothing_in_our_own(workspace: Path) -> None:
    done("quantize", "--int8", "--workspace", workspace, *FEW)
    report = json.loads(done("lint", workspace / "restv2_nano.int8.onnx", "--json"))
    found = report["found"]
    assert (found["attentions"], found["missed"]) == (5, 0)
    assert found["findings"] == []


@pytest.mark.slow
def test_sensitivity(workspace: Path) -> None:
    options = ("--workspace", workspace, "--limit", "16", "--gate-images", "16", "--json")
    report = json.loads(done("sensitivity", *options))
    roles = {found["role"] for found in report["places"]}
    assert roles == {"stem", "patch", "qkv", "proj", "mlp", "head"}
    assert sum(found["share"] for found in report["places"]) == pytest.approx(1)


@pytest.mark.slow
def test_bench_and_profile(workspace: Path) -> None:
    """The page has no section on an InstanceNorm that is not there."""
    model = workspace / "restv2_nano.onnx"
    report = json.loads(done("bench", model, "--workspace", workspace, "--seconds", "0.5",
                             "--batches", "1", "--sizes", "64", "--json"))  # fmt: skip
    record = report["record"]
    assert record["instance_norm"] is None
    assert {one["failed"] for one in record["engines"]} == {""}
    for backend in ("onnxruntime", "openvino"):
        found = json.loads(done("profile", model, "--backend", backend, "--size", "96", "--json"))
        parts = {time["block"] for time in found["blocks"]}
        assert {"stem", "patch2", "stage1.0", "stage3.1", "head"} <= parts
        assert found["nowhere"] < 0.2
