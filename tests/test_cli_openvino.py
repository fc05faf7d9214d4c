"""build-engine, predict and verify for OpenVINO as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino")

from rest_deploy import errors, machine
from rest_deploy.artifact import Sidecar, read_sidecar
from rest_deploy.contracts import Build
from rest_deploy.engine import backends, openvino
from rest_deploy.runtime import backend
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER
from rest_deploy.verify.parity import Case, synthetic_images
from tests.test_cli import done, refused, run, untouched

FEW = ("--limit", "24", "--gate-images", "22")
OV = ("--backend", "openvino")
BF16 = "BF16" in openvino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU has no bf16 units")


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    """A folder with a good export of a trained model."""
    folder = tmp_path / "workspace"
    shutil.copytree(trained_nano.parent, folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    return path


def built(path: Path) -> tuple[Sidecar, Build]:
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.build is not None
    return sidecar, sidecar.build


def test_int8(workspace: Path, photo: Path) -> None:
    """The recipe for this target, proven and gated on OpenVINO, opened there again. Products of
    activations are in it where the CPU adds them exactly."""
    exact = machine.adds_bytes_exactly(machine.features_for("openvino"))
    said = done("build-engine", "--int8", *OV, "--workspace", workspace, *FEW)
    engine = workspace / "rest_nano.int8.openvino.onnx"
    assert str(engine) in said
    assert "backend: openvino\n" in said
    assert "another type" not in said
    sidecar, build = built(engine)
    recipe = "int8-openvino" if exact else "int8"
    assert (build.backend, build.recipe, build.rest) == ("openvino", recipe, "fp32")
    assert build.exact_everywhere == (not exact)
    assert build.gated == "the file, on openvino/cpu"
    assert build.gate is not None
    assert build.gate.passed
    assert build.float_places == ()
    assert build.obtained["stem"] == {"int8": 3}
    assert build.obtained["scores"] == ({"int8": 5} if exact else {"float": 5})
    assert build.obtained["context"] == ({"int8": 1, "float": 4} if exact else {"float": 5})
    assert "unsign_activations" not in sidecar.passes
    assert "--backend openvino" in sidecar.command
    assert "--recipe" not in sidecar.command
    described = done("inspect", engine)
    assert "int8 for openvino" in described
    only = "on CPUs with VNNI only in 6 of" if exact else "on every x86 CPU, proven"
    assert f"8-bit sums    exact {only}" in described
    words = ("--sizes", "224", "--batches", "1")
    assert "on openvino/cpu against" in done("verify", engine, *words)
    assert "on onnxruntime/cpu against" in done(
        "verify", engine, *words, "--backend", "onnxruntime"
    )
    assert len(json.loads(done("predict", engine, photo, "--json"))["images"]) == 1
    kept = engine.with_name(f"{engine.name}.cache")
    assert {path.suffix for path in kept.iterdir()} == {".blob", ".json"}, "and its self-tests"


@pytest.mark.slow
def test_another_recipe_wins(workspace: Path) -> None:
    done("build-engine", "--int8", *OV, "--recipe", "int8", "--workspace", workspace, *FEW)
    _, build = built(workspace / "rest_nano.int8.openvino.onnx")
    assert build.recipe == "int8"
    assert build.obtained["scores"] == {"float": 5}
    table = workspace / "rest_nano.int8.calibration.json"
    said = done("build-engine", "--int8", *OV, "--table", table, "--no-gate", "--json",
                "--workspace", workspace)  # fmt: skip
    assert json.loads(said)["build"]["recipe"] == "int8"
    done("build-engine", "--int8", *OV, "--recipe", "int8-float-stem", "--no-gate", "--workspace",
         workspace, *FEW)  # fmt: skip
    _, build = built(workspace / "rest_nano.int8-float-stem.openvino.onnx")
    assert build.obtained["stem"] == {"float": 3}


def test_fp32(workspace: Path) -> None:
    done("build-engine", "--fp32", *OV, "--workspace", workspace, *FEW)
    engine = workspace / "rest_nano.fp32.openvino.onnx"
    _, build = built(engine)
    assert build.obtained["mlp"] == {"float": 10}
    assert build.gate is not None
    assert build.gate.checks[0].value < 1e-6
    assert "PASS" in done("verify", engine, "--sizes", "64,97x131", "--batches", "1,3")


@needs_bf16
def test_bf16(workspace: Path) -> None:
    """A property of the session: the file is the float graph, the sidecar says how it is run."""
    done("build-engine", "--bf16", *OV, "--workspace", workspace, *FEW)
    engine = workspace / "rest_nano.bf16.openvino.onnx"
    _, build = built(engine)
    assert {kind for counts in build.obtained.values() for kind in counts} == {"bf16"}
    assert build.gate is not None
    assert 1e-4 < build.gate.checks[0].value < 3e-2  # coarser than float32: it really ran so
    types = {i.data_type for i in onnx.load(engine).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 not in types
    images = synthetic_images(Case(batch=2, height=64, width=64))
    with (
        Session.open(engine, specialize=NEVER) as coarse,
        Session.open(engine, backend="onnxruntime") as exact,
    ):
        differ = np.abs(coarse.run(images) - exact.run(images)).max()
    assert differ > 1e-3


@needs_bf16
def test_int8_with_bf16_around(workspace: Path) -> None:
    done("build-engine", "--int8", "--rest", "bf16", *OV, "--workspace", workspace, *FEW)
    sidecar, build = built(workspace / "rest_nano.int8.openvino.onnx")
    assert build.rest == "bf16"
    assert build.obtained["mlp"] == {"int8": 10}
    assert build.obtained["pa"] == {"bf16": 4}
    assert "--rest bf16" in sidecar.command


def test_bf16_on_a_cpu_without(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "_core", Old)
    with untouched(workspace):
        refused(run("build-engine", "--bf16", *OV, "--workspace", workspace), 4,
                "no bf16 units", "--backend openvino --fp32")  # fmt: skip


def test_refusals(workspace: Path) -> None:
    with untouched(workspace):
        for words, code, message in (
            (("--fp16",), 4, "does not compute in fp16 on a CPU (FP16 it makes BF16"),
            (("--fp8",), 4, "does not compute in fp8 on a CPU"),
            (("--int8", "--rest", "fp16"), 3, "makes bf16 of fp16 without a word"),
            (("--fp32", "--rest", "bf16"), 3, "--rest goes with --int8 or --fp8"),
            (("--int8", "--refit"), 3, "--refit goes with TensorRT, not with openvino"),
            (("--int8", "--dry-run"), 3, "--dry-run goes with TensorRT"),
            (("--int8", "--provider", "cpu"), 3, "--provider goes with --backend onnxruntime"),
        ):
            refused(run("build-engine", *OV, *words, "--workspace", workspace), code, message)


def test_a_gate_that_fails_publishes_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate looks at what OpenVINO answers."""
    infer = openvino.OpenVinoRunner.infer

    def off(self: openvino.OpenVinoRunner, feeds: dict[str, Any]) -> dict[str, Any]:
        return {name: np.multiply(found, 1.5) for name, found in infer(self, feeds).items()}

    monkeypatch.setattr(openvino.OpenVinoRunner, "infer", off)
    with untouched(workspace):
        refused(run("build-engine", "--fp32", *OV, "--workspace", workspace, *FEW), 1,
                "does not pass the accuracy gate", "nothing was written")  # fmt: skip


def test_without_openvino(workspace: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("build-engine", "--fp32", *OV, "--no-gate", "--workspace", workspace)
    engine = workspace / "rest_nano.fp32.openvino.onnx"
    done("predict", engine, photo, "--backend", "onnxruntime")  # it remembers its self-test there
    for module in (errors, backend, backends):
        monkeypatch.setattr(module, "installed", lambda name: name == "onnxruntime")
    with untouched(workspace):
        refused(
            run("predict", engine, photo), 4,
            "'openvino', which is not installed: the file was built for it",
            "rest-deploy[openvino]", "--backend onnxruntime, which runs the file too",
        )  # fmt: skip
        assert photo.name in done("predict", engine, photo, "--backend", "onnxruntime")
        refused(run("predict", engine, photo, *OV), 4, "'openvino', which is not installed")
        refused(run("build-engine", *OV, "--workspace", workspace), 4,
                "the package is not installed: pip install 'rest-deploy[openvino]'")  # fmt: skip


def test_an_export_on_openvino(workspace: Path, photo: Path) -> None:
    """By name; nothing is written beside a file that was not built for it."""
    model = workspace / "rest_nano.onnx"
    with untouched(workspace):
        words = ("--sizes", "64", "--batches", "1", "--threads", "1")
        assert "on openvino/cpu against" in done("verify", model, *OV, *words)
        assert "on onnxruntime/cpu against" in done("verify", model, *words)
        assert photo.name in done("predict", model, photo, *OV)
        refused(run("verify", model, *OV, "--provider", "cpu"), 3, "is ONNX Runtime's")
        refused(run("verify", model, *OV, "--threads", "1000"), 3, "1000 threads were asked for")
