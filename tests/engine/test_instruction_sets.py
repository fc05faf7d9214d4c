"""Engines are right on lower instruction sets than this CPU's, asked for by name.

A CPU that is below a cap runs the test all the same, as it is: the test's name says so. INT8 is
held against the same file with its sums in float: what rounds, rounds there too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from rest_deploy import machine
from rest_deploy.artifact import read_sidecar
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.errors import installed
from rest_deploy.graph.unsign import unsign_activations
from rest_deploy.machine import adds_bytes_exactly, features_for, instruction_set
from rest_deploy.model.reference import Reference
from rest_deploy.quant.calibrate import quantize
from rest_deploy.quant.table import CalibrationTable
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, bound, load_reference, synthetic_images

IMAGES = synthetic_images(Case(batch=4, height=96, width=64))

ROUNDING = 5e-3
"""A float kernel's last bit may round the next activation elsewhere: 1.2e-3 and 1.4e-3 seen. Sums
that saturate: 6e-2 (OpenVINO) and 1.6e-2 (ONNX Runtime)."""

CAPS = [
    {},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"DNNL_MAX_CPU_ISA": "AVX2"},
]

Logits = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Files:
    """plain: the export. exact: INT8 whose weights no CPU saturates on; loose: all 8 bits. Those
    for ONNX Runtime as build-engine adapts them: unsigned activations, and in float what it has no
    integer kernels for."""

    plain: Path
    exact: Path
    loose: Path
    exact_ort: Path
    loose_ort: Path


@pytest.fixture(scope="module")
def files(
    trained_nano: Path, nano_table: CalibrationTable, tmp_path_factory: pytest.TempPathFactory
) -> Files:
    folder = tmp_path_factory.mktemp("sets")

    def made(name: str, *, exact: bool, adapted: bool) -> Path:
        recipe = msgspec.structs.replace(nano_table.recipe, exact_pairs=exact)
        if adapted:
            recipe = msgspec.structs.replace(recipe, quantize=("qkv", "proj", "mlp"))
        table = msgspec.structs.replace(nano_table, recipe=recipe)
        model, _ = quantize(trained_nano, table)
        if adapted:
            assert unsign_activations(model) > 0
        ir.save(model, folder / f"{name}.onnx")
        return folder / f"{name}.onnx"

    return Files(
        plain=trained_nano,
        exact=made("exact", exact=True, adapted=False),
        loose=made("loose", exact=False, adapted=False),
        exact_ort=made("exact-ort", exact=True, adapted=True),
        loose_ort=made("loose-ort", exact=False, adapted=True),
    )


@pytest.fixture(scope="module")
def reference(trained_nano: Path) -> tuple[Logits, float]:
    """Logits in float64, and the card's bound for an engine in float32."""
    sidecar = read_sidecar(trained_nano)
    assert sidecar is not None
    module = load_reference(sidecar.metadata)
    return Reference(module)(IMAGES), bound(sidecar.metadata)


def in_float(path: Path) -> npt.NDArray[np.float64]:
    return logits(OnnxRuntimeRunner(path, in_float=True))


def logits(runner: OnnxRuntimeRunner) -> npt.NDArray[np.float64]:
    (image,) = runner.inputs
    return runner.infer({image.name: IMAGES})["logits"].astype(np.float64)


# --- OpenVINO, by what oneDNN is held to ----------------------------------------------------------


def words(cap: dict[str, str]) -> str:
    """The name of a test: "DNNL_MAX_CPU_ISA=AVX2 (this CPU has no more)"."""
    named = "".join(f"{name}={level}" for name, level in cap.items()) or "as it is"
    held, own = features_for("openvino", environ=cap), machine.cpu().features
    is_held = f"{instruction_set(held)}" if held != own else "this CPU has no more"
    return f"{named} ({is_held})" if cap else f"{named} ({instruction_set(own)})"


@pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
@pytest.mark.parametrize("cap", CAPS, ids=words)
def test_openvino(
    cap: dict[str, str], files: Files, reference: tuple[Logits, float], tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    models = (files.plain, files.exact, files.loose)
    clean = {name: value for name, value in os.environ.items() if name not in machine.CAPS}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.held", tmp_path / "images.npy",
         tmp_path / "answers.npz", *models],
        env=clean | cap, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    expected, limit = reference
    assert relative_error(expected, answers[files.plain.stem]) < limit
    assert relative_error(in_float(files.exact), answers["exact"]) < ROUNDING

    # The two controls: the cap held, and where sums of bytes saturate this test sees it.
    features = features_for("openvino", environ=cap)
    kernels = done.stdout.split()
    wide = sum("avx512" in kernel for kernel in kernels)
    if "avx512f" in features:
        assert wide > 0
    else:  # OpenVINO's own kernels know no cap, so on a larger CPU some are left
        assert wide < len(kernels) / 2
        assert wide == 0 or "avx512f" in machine.cpu().features
    if features == machine.cpu().features:
        saturated = relative_error(in_float(files.loose), answers["loose"]) >= ROUNDING
        assert saturated == (not adds_bytes_exactly(features))


# --- ONNX Runtime, which knows no cap, by its own options -----------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "x64quantprecision": {"session.x64quantprecision": "1"},
    "no optimizer": {"level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL},
}


def run(path: Path, wishes: dict[str, Any]) -> Logits:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in wishes.items():
        if key == "level":
            options.graph_optimization_level = value
        else:
            options.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return np.asarray(session.run(["logits"], {image.name: IMAGES})[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_onnxruntime(name: str, files: Files, reference: tuple[Logits, float]) -> None:
    """Its own way out of saturation (products of unsigned bytes only) and no integer kernels at
    all give what its default gives, since these weights do not need them."""
    expected, limit = reference
    assert relative_error(expected, run(files.plain, OPTIONS[name])) < limit
    quantized = run(files.exact_ort, OPTIONS[name])
    assert relative_error(in_float(files.exact_ort), quantized) < ROUNDING

    found = relative_error(in_float(files.loose_ort), run(files.loose_ort, OPTIONS[name]))
    exact = name != "as it is" or adds_bytes_exactly(features_for("onnxruntime"))
    assert (found < ROUNDING) == exact
