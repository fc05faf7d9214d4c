"""calibrate, quantize and build-engine as a user meets them; see test_cli.py for the helpers."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rest_deploy.artifact import newest, read_sidecar
from rest_deploy.contracts import Gate
from rest_deploy.quant import resume
from rest_deploy.quant.table import read_table
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.sensitivity import last_sensitivity
from tests.conftest import TRAINED_WEIGHTS
from tests.quant.test_dataset import photo_like
from tests.test_cli import CLONE, INTERRUPTIBLE, done, error_of, eventually, refused, run, untouched

pytestmark = pytest.mark.usefixtures("no_openvino")
"""`auto` is ONNX Runtime's CPU here; test_cli_openvino.py has the other machine."""

FEW = ("--limit", "24", "--gate-images", "22")


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    """A folder with a good export of a trained model."""
    folder = tmp_path / "workspace"
    shutil.copytree(trained_nano.parent, folder)
    return folder


def test_build_engine_after_export(workspace: Path) -> None:
    """The whole way: table, engine, sidecar, reuse, predictions, parity at other sizes."""
    said = done("build-engine", "--int8", "--workspace", workspace, *FEW)
    assert "rest_nano.int8.onnxruntime.onnx" in said
    assert "backend: onnxruntime (not tensorrt: " in said
    assert "warning: 24 calibration images; NVIDIA recommends 500" in said
    assert "ok   top-1 agreement" in said
    engine = workspace / "rest_nano.int8.onnxruntime.onnx"
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.build is not None
    build = sidecar.build
    assert (build.precision, build.backend, build.recipe) == ("int8", "onnxruntime", "int8")
    assert build.obtained["qkv"] == {"int8": 14}, "integer kernels, as ONNX Runtime planned them"
    assert build.obtained["proj"] == {"int8": 4}
    assert build.obtained["stem"] == build.obtained["patch"] == {"float": 3}
    assert set(build.float_places) == {
        "stem.conv1:stem", "stem.conv2:stem", "stem.conv3:stem", "patch_embed_2:patch",
        "patch_embed_3:patch", "patch_embed_4:patch", "head:head",
    }  # fmt: skip
    assert "has no integer kernels here, so float weights stay: stem 3 of 3, patch 3 of 3" in said
    assert build.gate is not None
    assert build.gate.passed
    assert build.gate.reference == "PyTorch float64"
    assert build.gate.labelled == 22
    assert newest(workspace, ".onnx").name == "rest_nano.onnx", "an engine is not an export"
    again = done("build-engine", "--workspace", workspace, *FEW)
    assert "24 images, reused" in again
    assert "PASS" in done("verify", engine, "--sizes", "224,97x131", "--batches", "2")
    inspected = json.loads(done("inspect", engine, "--json"))
    assert inspected["sidecar"]["build"]["precision"] == "int8"
    shown = done("inspect", engine)
    assert "no sidecar" not in shown
    assert "int8 for onnxruntime, matrix layers: " in shown
    assert "gate          passed on 22 held-out crops" in shown
    assert Session.open(engine).run(np.zeros((2, 3, 40, 70), np.float32)).shape == (2, 22)
    refused(run("build-engine", engine, "--workspace", workspace), 3, "is int8 already")


def test_fresh_weights_work_as_they_stand(exported_nano: Path, tmp_path: Path) -> None:
    shutil.copytree(exported_nano.parent, tmp_path / "w")
    said = done("build-engine", "--workspace", tmp_path / "w", *FEW)
    assert "warning: fresh weights" in said
    assert "top-1 agreement" not in said


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_quantize_to_other_precisions(workspace: Path, precision: str) -> None:
    if precision == "bf16":
        refused(
            run("quantize", "--bf16", "--workspace", workspace, *FEW), 3, "opset 22", "--opset 22"
        )
        return
    report = json.loads(
        done("quantize", f"--{precision}", "--workspace", workspace, "--json", *FEW)
    )
    path = workspace / f"rest_nano.{precision}.onnx"
    assert report["path"] == str(path)
    assert report["build"]["backend"] == "onnx"
    assert report["build"]["gate"]["checks"][0]["passed"]
    onnx.checker.check_model(str(path), full_check=True)


def test_no_backend_for_bf16(workspace: Path) -> None:
    with untouched(workspace):
        refused(
            run("build-engine", "--bf16", "--workspace", workspace), 4,
            "onnxruntime: it does not compute in bf16", "rest-deploy quantize --bf16",
        )  # fmt: skip
        refused(run("build-engine", "--backend", "tensorrt", "--workspace", workspace), 4,
                "tensorrt: ")  # fmt: skip
        refused(run("build-engine", "--backend", "nvidia", "--workspace", workspace), 3,
                "unknown backend 'nvidia'")  # fmt: skip


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that no INT8 engine satisfies."""
    harsh = Gate().int8
    monkeypatch.setattr(
        Gate, "of", lambda _self, _precision: type(harsh)(
            agreement=1.0, kl=1e-9, relative_error=1e-6, relative_error_fresh=1e-6
        ),
    )  # fmt: skip


@pytest.mark.usefixtures("strict")
def test_a_red_gate_publishes_nothing(workspace: Path) -> None:
    done("calibrate", "--workspace", workspace, "--limit", "24")
    with untouched(workspace):
        refused(
            run("build-engine", "--workspace", workspace, *FEW), 1,
            "does not pass the accuracy gate", "relative logit error", "--no-gate",
        )  # fmt: skip
    said = done("build-engine", "--workspace", workspace, "--no-gate", *FEW)
    assert "built without the accuracy gate" in said
    sidecar = read_sidecar(workspace / "rest_nano.int8.onnxruntime.onnx")
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.gate is None
    assert "--no-gate" in sidecar.command


def test_tables(workspace: Path, exported_nano: Path, tmp_path: Path) -> None:
    said = done("calibrate", "--workspace", workspace, "--limit", "24")
    table = workspace / "rest_nano.int8.calibration.json"
    assert str(table) in said
    assert "reused, it fits" in done("calibrate", "--workspace", workspace, "--limit", "24")
    assert "replaced: it was made on other images" in done(
        "calibrate", "--workspace", workspace, "--limit", "25"
    )
    assert read_table(table).images == 25
    with untouched(workspace):
        refused(
            run("quantize", exported_nano, "--table", table, "--workspace", workspace), 3,
            "was made for the model",
        )  # fmt: skip
        refused(run("quantize", "--fp8", "--table", table, "--workspace", workspace), 3,
                "the recipe 'int8' is for int8, fp8 was asked for")  # fmt: skip
        table2 = tmp_path / "table.json"
        table2.write_text("{")
        refused(run("quantize", "--table", table2, "--workspace", workspace), 3,
                "is not a calibration table")  # fmt: skip


def test_bf16_from_the_opset_it_needs(tmp_path: Path) -> None:
    done("export", "--variant", "nano", "--checkpoint", TRAINED_WEIGHTS, "--opset", "22",
         "--workspace", tmp_path)  # fmt: skip
    said = done("quantize", "--bf16", "--workspace", tmp_path, *FEW)
    assert "rest_nano.bf16.onnx" in said
    assert "FAIL" not in said
    onnx.checker.check_model(str(tmp_path / "rest_nano.bf16.onnx"), full_check=True)


def test_without_the_checkpoint_the_float_export_stands_in(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so: it carries its own proof."""
    from rest_deploy.verbs import gate

    monkeypatch.setattr(gate, "installed", lambda _module: False)
    said = done("quantize", "--fp32", "--workspace", workspace, *FEW)
    assert "against the float export, within" in said
    assert "(PyTorch is not installed)" in said


def test_labels_of_the_gate(workspace: Path, tmp_path: Path) -> None:
    from rest_deploy.verbs.gate import gate_data

    photo_like(tmp_path / "set" / "coffee", 2)
    photo_like(tmp_path / "set" / "unknown", 3, seed=1)
    metadata = Session.open(workspace / "rest_nano.onnx").metadata
    found = gate_data(metadata, tmp_path / "set", 100)
    coffee = metadata.labels.index("coffee")
    assert sorted(found.labels) == [-1, -1, -1, coffee, coffee]


def test_activations_beyond_fp16_are_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rest_deploy.quant import extents

    monkeypatch.setattr(extents, "largest_values", lambda *_: {"stage3.0.mlp.fc1.MatMul.out": 1e5})
    with untouched(workspace):
        refused(run("quantize", "--fp16", "--workspace", workspace, *FEW), 3,
                "stage3.0.mlp.fc1.MatMul.out reaches 1e+05", "--bf16")  # fmt: skip


def test_values_beyond_fp16_are_found_on_real_images(tmp_path: Path) -> None:
    """fc1 of one block is 1e5 times too large and fc2 as much too small: float32 does not mind."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    state = load_file(TRAINED_WEIGHTS)
    with safe_open(TRAINED_WEIGHTS, "np") as stored:
        metadata = stored.metadata()
    state["stage3.0.mlp.fc1.weight"] *= np.float32(1e5)
    state["stage3.0.mlp.fc2.weight"] *= np.float32(1e-5)
    save_file(state, tmp_path / "wide.safetensors", metadata=metadata)
    done("export", "--variant", "nano", "--checkpoint", tmp_path / "wide.safetensors",
         "--workspace", tmp_path / "w")  # fmt: skip
    with untouched(tmp_path / "w"):
        refused(
            run("quantize", "--fp16", "--workspace", tmp_path / "w", *FEW), 3,
            "tensors leave FP16's range (65504) on real images", "stage3.0.mlp.", "reaches",
            "--bf16",
        )  # fmt: skip


def test_a_foreign_file_is_linted(workspace: Path, tmp_path: Path) -> None:
    done("quantize", "--int8", "--workspace", workspace, "--no-gate", *FEW)
    said = done("lint", workspace / "rest_nano.int8.onnx")
    assert "5 attentions, 0 of them missed; 35 of 48 weight layers quantized" in said
    assert "nothing to mend" in said
    result = run("lint", workspace / "rest_nano.onnx")
    assert result.exit_code == 1
    assert (
        "error [attention-missed] 5 of 5 attentions have a float q, k, v or proj" in result.stdout
    )
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x0anothing")
    refused(run("lint", broken), 3, "is not an ONNX model")
    refused(run("lint", tmp_path / "none.onnx"), 3, "no such file")


def test_calibration_at_several_sizes(workspace: Path) -> None:
    options = ("--calib-sizes", "224,96x160", "--limit", "20", "--workspace", workspace)
    said = done("calibrate", *options)
    assert "brought to 224x224, 96x160" in said
    table = read_table(workspace / "rest_nano.int8.calibration.json")
    assert table.calibration_set.sizes == ((224, 224), (96, 160))
    pixels = (8 + 4) * 224 * 224 + 8 * 96 * 160
    assert table.ranges["image"].values == 3 * pixels
    assert "reused, it fits" in done("calibrate", *options)
    changed = done("calibrate", "--limit", "20", "--workspace", workspace)
    assert "replaced: it was made at other sizes" in changed
    with untouched(workspace):
        refused(run("calibrate", "--calib-sizes", "16", "--workspace", workspace), 3,
                "calibration size 16x16; expected at least 32")  # fmt: skip
        assert run("calibrate", "--calib-sizes", "a", "--workspace", workspace).exit_code == 2


def test_a_folder_of_classes_calibrates(workspace: Path, tmp_path: Path) -> None:
    photo_like(tmp_path / "set" / "coffee", 10)
    photo_like(tmp_path / "set" / "unknown", 10, seed=1)
    report = json.loads(
        done("quantize", "--int8", "--workspace", workspace, "--calib-data", tmp_path / "set",
             "--gate-data", tmp_path / "set", "--json", "--no-gate")
    )  # fmt: skip
    assert report["build"]["gate"] is None
    assert report["calibration"]["health"]["classes"] == 2


BAD_SETS: dict[str, Any] = {
    "empty folder": ((), "no images"),
    "missing": (None, "is not a folder of images"),
    "corrupt": ("corrupt", "cannot be read"),
    "noise": ("noise", "random noise"),
    "0..255": ("wide", "expected normalized images"),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_bad_calibration_sets(workspace: Path, tmp_path: Path, name: str) -> None:
    kind, words = BAD_SETS[name]
    data = tmp_path / "data"
    if kind is not None and kind != "wide":
        data.mkdir()
    if kind == "corrupt":
        for index in range(4):
            (data / f"{index}.png").write_bytes(b"not an image")
    if kind == "noise":
        from PIL import Image

        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, (224, 224, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / f"{index}.png")
    if kind == "wide":
        data = tmp_path / "data.npy"
        np.save(data, np.full((4, 3, 64, 64), 200.0, np.float32))
    with untouched(workspace):
        result = run("build-engine", "--workspace", workspace, "--calib-data", data, *FEW)
        assert result.exit_code == 3, result.output
        error_of(result.stderr)
        assert words in result.stderr.lower(), result.stderr


def test_one_class_is_warned_of(workspace: Path, tmp_path: Path) -> None:
    photo_like(tmp_path / "set" / "cat", 20)
    said = done("calibrate", "--workspace", workspace, "--calib-data", tmp_path / "set")
    assert "all calibration images are of one class" in said


def test_a_recipe_with_an_unknown_role(workspace: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    text = (CLONE / "calibration" / "int8.toml").read_text(encoding="utf-8")
    recipe.write_text(text.replace('"proj"', '"projj"'), encoding="utf-8")
    with untouched(workspace):
        refused(run("build-engine", "--recipe", recipe, "--workspace", workspace), 3,
                "unknown role 'projj'", "did you mean 'proj'?")  # fmt: skip


def test_wrong_options(workspace: Path) -> None:
    with untouched(workspace):
        refused(run("quantize", "--int8", "--io-type", "float16", "--workspace", workspace), 3,
                "--io-type float16 goes with --fp16")  # fmt: skip


def test_an_interrupted_calibration_goes_on(workspace: Path) -> None:
    """Ctrl-C while it counts: exit 130, the state is kept, the next run takes it up."""
    command = (
        f"{INTERRUPTIBLE}; from rest_deploy.quant import resume; resume.SAVE_SECONDS = 0.0; "
        "from rest_deploy.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, "calibrate", "--workspace", workspace, "--limit", "200"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CLONE,
    )  # fmt: skip
    state = workspace / "rest_nano.int8.calibration.partial.npz"
    eventually(state.is_file, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "interrupted" in stderr
    assert state.is_file()
    assert resume.SAVE_SECONDS > 0
    done("calibrate", "--workspace", workspace, "--limit", "200")
    assert not state.exists()


def test_an_interrupted_sensitivity_goes_on(workspace: Path) -> None:
    """Ctrl-C while it measures: exit 130, the scores so far are kept and used."""
    options = ["sensitivity", "--workspace", str(workspace), "--limit", "16", "--seed", "3",
               "--backend", "onnxruntime", "--gate-images", "16"]  # fmt: skip
    command = f"{INTERRUPTIBLE}; from rest_deploy.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CLONE,
    )  # fmt: skip
    stored = workspace / "rest_nano.int8.sensitivity.json"
    eventually(stored.is_file, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT), stderr
    scores = json.loads(stored.read_text())["scores"]
    assert 0 < len(scores) < 20
    report = json.loads(done(*options, "--json"))
    assert report["resumed"] == len(scores)
    export = read_sidecar(workspace / "rest_nano.onnx")
    assert export is not None
    kept = last_sensitivity("rest_nano.onnx", export.sha256, workspace)
    assert kept is not None
    assert len(kept.places) == len(report["places"]), "for the next bench to show"
    assert read_table(workspace / "rest_nano.int8.calibration.json").images == 16


def test_sensitivity_with_a_budget(workspace: Path) -> None:
    """The first half of its scores is taken from an interrupted run."""
    recipe = workspace / "mine.toml"
    text = (CLONE / "calibration" / "int8.toml").read_text(encoding="utf-8")
    recipe.write_text(
        text.replace('quantize = ["stem", "patch", "qkv", "proj", "mlp", "head"]',
                     'quantize = ["patch", "head"]').replace('name = "int8"', 'name = "few"'),
        encoding="utf-8",
    )  # fmt: skip
    options = ("--workspace", workspace, "--recipe", recipe, "--gate-images", "16")
    data = workspace / "set"
    photo_like(data, 16)
    first = json.loads(done("sensitivity", *options, "--calib-data", data, "--json"))
    assert {(found["block"], found["role"]) for found in first["places"]} == {
        ("patch_embed_2", "patch"), ("patch_embed_3", "patch"), ("patch_embed_4", "patch"),
        ("head", "head"),
    }  # fmt: skip
    stored = workspace / "rest_nano.few.sensitivity.json"
    half = json.loads(stored.read_text())
    half["scores"] = dict(list(half["scores"].items())[:2])
    stored.write_text(json.dumps(half))
    said = done("sensitivity", *options, "--calib-data", data, "--budget", "relative_error<=0.004")
    assert "2 scores from an earlier run" in said
    assert "heat map" in said
    assert "budget relative_error<=0.004 kept" in said
    target = workspace / "rest_nano.few-budget.toml"
    assert str(target) in said
    assert '"patch_embed_2:patch"' in target.read_text() or '"head:head"' in target.read_text()
    refused(run("sensitivity", *options, "--budget", "speed>=2"), 3, "is not a budget")
