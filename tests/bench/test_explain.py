"""One engine explained: sums, refusals, and warnings that are earned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rest_deploy.bench.explain import examine, explain, opened
from rest_deploy.bench.record import Ceilings
from rest_deploy.cards import load_card
from rest_deploy.contracts import Dims, HostBackend
from rest_deploy.engine import onnxruntime_profile
from rest_deploy.engine.executed import Executed, Kernel
from rest_deploy.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    RestDeployError,
    ShapeError,
    installed,
)
from rest_deploy.model import cost
from rest_deploy.model.deploy import to_deploy
from rest_deploy.model.rest import ResT

SHAPE: Dims = (2, 3, 64, 96)
LOW = Ceilings(gemm_gflops={"fp32": 1e-3}, copy_gb_per_s=1e-3, threads=1)
HIGH = Ceilings(gemm_gflops={"fp32": 1e6}, copy_gb_per_s=1e6, threads=1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nothing_is_lost(exported_nano: Path, backend: HostBackend) -> None:
    """Every FLOP is in a kernel, nearly all time in a block."""
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    found = examine(exported_nano, SHAPE, 1, backend=backend, ceilings=HIGH, seconds=0)
    deployed, _ = to_deploy(ResT(load_card("nano").architecture))
    counted = 2 * SHAPE[0] * cost.macs(deployed, *SHAPE[2:])
    assert sum(time.flops for time in found.blocks) == counted
    assert sum(time.ms for time in found.blocks) == pytest.approx(found.kernel_ms)
    assert found.nowhere < 0.01
    assert {time.block for time in found.blocks} >= {"stem", "patch2", "stage3.1", "head"}
    assert {time.kind for time in found.blocks} == {"gemm", "conv", "attention", "norm", "other"}
    assert all(time.ms > time.floor_ms > 0 for time in found.blocks if time.flops)
    assert not any("faster than" in warning for warning in found.warnings)
    assert len(found.costliest) == 10
    assert found.costliest[0].ms == max(layer.ms for layer in found.costliest)


def test_a_ceiling_that_is_too_low_is_told(exported_nano: Path) -> None:
    found = examine(exported_nano, SHAPE, 1, ceilings=LOW, seconds=0)
    (warning,) = [words for words in found.warnings if "faster than the measured" in words]
    assert "stem conv" in warning
    assert " more;" in warning


def test_without_ceilings_no_floor(exported_nano: Path) -> None:
    found = explain(exported_nano, SHAPE, 1, seconds=0)
    assert {time.floor_ms for time in found} == {0.0}


def test_what_the_profile_does_not_name_is_told(
    exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Executed("onnxruntime/cpu", (Kernel("engine", "Engine", "fp32", (), (), 5.0, 5.0),),
                    5, 4.0, 9.0)  # fmt: skip
    monkeypatch.setattr(onnxruntime_profile, "profile", lambda *_a, **_k: lost)
    found = examine(exported_nano, SHAPE)
    assert found.nowhere == 1.0
    assert any(words.startswith("100.0% of the counted FLOPs") for words in found.warnings)
    assert any("add up to 5.00 ms, a run takes 9.00 ms" in words for words in found.warnings)


@pytest.mark.parametrize(
    ("shape", "name", "error", "words"),
    [
        ((1, 3, 31, 64), "rest_nano.onnx", ShapeError, "at least 32"),
        ((0, 3, 64, 64), "rest_nano.onnx", ShapeError, "got the shape"),
        ((1, 4, 64, 64), "rest_nano.onnx", ShapeError, "got the shape"),
        (SHAPE, "missing.onnx", ArtifactError, "no such model"),
        (SHAPE, "x.engine", ArtifactError, "expected .onnx"),
        (SHAPE, "broken.onnx", ArtifactError, "is not an ONNX model"),
        (SHAPE, "empty.onnx", ArtifactError, "has no input"),
    ],
)
def test_refusals(
    exported_nano: Path,
    tmp_path: Path,
    shape: Dims,
    name: str,
    error: type[RestDeployError],
    words: str,
) -> None:
    shutil.copy(exported_nano, tmp_path / "rest_nano.onnx")
    (tmp_path / "x.engine").write_bytes(b"plan")
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 9)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(error, match=words):
        opened(tmp_path / name, shape)


def test_a_graph_that_cannot_be_counted_is_timed(exported_nano: Path, tmp_path: Path) -> None:
    """As other tools write them: a name that inference does not know, here a domain's."""
    model = onnx.load(exported_nano)
    last = next(node for node in model.graph.node if node.op_type == "Gemm")
    last.input[0] = "doubled"
    foreign = helper.make_node(
        "BiasGelu", ["ReduceMean.out", "zero"], ["doubled"], name="s", domain="com.microsoft"
    )
    model.graph.node.insert(len(model.graph.node) - 1, foreign)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(128, np.float32), "zero"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path = tmp_path / "strange.onnx"
    onnx.save(model, path)
    found = examine(path, SHAPE, 1, ceilings=HIGH, seconds=0)
    assert found.kernel_ms > 0
    assert {(time.block, time.flops, time.floor_ms) for time in found.blocks} == {("other", 0, 0)}
    assert {"gemm", "conv"} <= {time.kind for time in found.blocks}
    words = "neither FLOPs nor bytes are known: the shape of doubled is not known"
    assert any(warning.startswith(words) for warning in found.warnings)


@pytest.mark.parametrize(
    ("built", "backend", "expected"),
    [
        ({}, None, ("onnxruntime", "f32")),
        ({"backend": "openvino"}, None, ("openvino", "f32")),
        ({"backend": "openvino", "precision": "bf16"}, None, ("openvino", "bf16")),
        ({"backend": "openvino", "rest": "bf16"}, None, ("openvino", "bf16")),
        ({"backend": "openvino"}, "onnxruntime", ("onnxruntime", "f32")),
        ({"provider": "cpu"}, "openvino", ("openvino", "f32")),
    ],
)
def test_the_runtime_that_a_file_was_built_for(
    exported_nano: Path,
    monkeypatch: pytest.MonkeyPatch,
    openvino_bf16: Callable[[bool], None],
    built: dict[str, str],
    backend: HostBackend | None,
    expected: tuple[str, str],
) -> None:
    sidecar_with(monkeypatch, built)
    openvino_bf16(True)
    source = opened(exported_nano, SHAPE, backend)
    assert (source.runtime, source.inference) == expected


@pytest.mark.parametrize("built", [{"precision": "bf16"}, {"rest": "bf16"}])
def test_bf16_where_the_cpu_has_not_its_units(
    exported_nano: Path,
    monkeypatch: pytest.MonkeyPatch,
    openvino_bf16: Callable[[bool], None],
    built: dict[str, str],
) -> None:
    sidecar_with(monkeypatch, {"backend": "openvino", **built})
    openvino_bf16(False)
    with pytest.raises(MissingDependencyError, match="has no bf16 units"):
        opened(exported_nano, SHAPE)


def test_a_file_for_a_gpu_is_refused(exported_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar_with(monkeypatch, {"provider": "cuda"})
    with pytest.raises(InputError, match="built for ONNX Runtime's cuda provider"):
        opened(exported_nano, SHAPE)


def sidecar_with(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    values = {"backend": "onnxruntime", "precision": "int8", "rest": "", "provider": ""} | changes
    sidecar = SimpleNamespace(build=SimpleNamespace(**values))
    monkeypatch.setattr("rest_deploy.bench.explain.read_sidecar", lambda _path: sidecar)
