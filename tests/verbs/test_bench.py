"""Engines of a workspace, found, measured and told; the times themselves are not looked at."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from rest_deploy import verbs
from rest_deploy.artifact import publish, read_sidecar, sha256_file, sidecar_path, staging
from rest_deploy.bench import ceilings, explain, roofline, store
from rest_deploy.bench.record import EngineResult, PlaceError, Record, Sensitivity
from rest_deploy.contracts import Build
from rest_deploy.engine import providers
from rest_deploy.errors import ArtifactError, InputError, MissingDependencyError
from rest_deploy.model.eager import Eager
from rest_deploy.verbs import BenchReport, BenchWishes
from rest_deploy.verbs.engines import find
from rest_deploy.verbs.sensitivity import Stored, last_sensitivity

QUICK = BenchWishes(
    batches=(1,), seconds=0.2, images=16, pytorch=False, profile=False, cold_start=False
)


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_nano.parent, tmp_path / "workspace")
    return tmp_path / "workspace"


def engine(workspace: Path, name: str, change: Any = None, **of_build: Any) -> Path:
    """Another engine made from the export: `change` edits its graph."""
    export = workspace / "rest_nano.onnx"
    old = read_sidecar(export)
    assert old is not None
    model = onnx.load(export)
    if change is not None:
        change(model.graph)
    build = Build(**({"precision": "fp32", "backend": "onnxruntime", "io_type": "float32",
                      "obtained": {}, "source_sha256": old.sha256} | of_build))  # fmt: skip
    with staging(workspace) as folder:
        staged = folder / name
        onnx.save(model, staged)
        sidecar = msgspec.structs.replace(
            old, file=name, sha256=sha256_file(staged), build=build,
            size_bytes=staged.stat().st_size, parity=None,
        )  # fmt: skip
        publish(staged, workspace / name, sidecar)
    return workspace / name


def head_bias(graph: onnx.GraphProto, value: float) -> None:
    (tensor,) = (one for one in graph.initializer if one.name == "head.bias")
    bias = np.full(tuple(tensor.dims), value, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(bias, "head.bias"))


def broken(graph: onnx.GraphProto) -> None:
    head_bias(graph, np.nan)


def bench(workspace: Path, *engines: Path, **changes: Any) -> BenchReport:
    wishes = replace(QUICK, **changes)
    return verbs.bench(engines, wishes, workspace=workspace, command="rest-deploy bench")


def by_label(record: Record) -> dict[str, EngineResult]:
    return {one.label: one for one in record.engines}


def test_all_of_a_workspace(workspace: Path) -> None:
    engine(workspace, "rest_nano.fp32.onnxruntime.onnx")
    report = bench(workspace)
    found = by_label(report.record)
    assert list(found) == ["fp32 export", "fp32 onnxruntime"]
    for one in found.values():
        assert one.failed == ""
        assert one.accuracy is not None
        assert one.accuracy.images == 16
        assert one.accuracy.relative_error < 1e-5
        modes = [(measured.shape, measured.mode) for measured in one.measurements]
        assert modes == [("1x3x224x224", mode) for mode in ("isolated", "saturated", "end-to-end")]
    assert {ratio.base for ratio in report.record.ratios} == {"fp32 export"}
    assert report.record.advice
    assert store.read(Path(report.record_file)) == report.record
    assert report.record.command == "rest-deploy bench"


def test_a_broken_engine_has_no_times(workspace: Path) -> None:
    """The others go on, and all is saved."""
    engine(workspace, "rest_nano.broken.onnx", broken, precision="int8")
    report = bench(workspace)
    found = by_label(report.record)
    assert "NaN or infinity" in found["int8 onnxruntime"].failed
    assert found["int8 onnxruntime"].measurements == ()
    assert found["fp32 export"].measurements
    assert "int8" not in report.record.advice.lower().split("deploy")[1][:20]
    assert Path(report.record_file).is_file()


def test_everything_that_is_known_of_an_engine(workspace: Path) -> None:
    report = bench(workspace, pytorch=True, profile=True, cold_start=True)
    found = by_label(report.record)
    export = found["fp32 export"]
    assert {time.block for time in export.blocks} >= {"stem", "stage1.0", "head"}
    assert export.start is not None
    assert export.start.total_ms > export.start.first_ms > 0
    assert export.peak_bytes > 10_000_000
    assert report.record.ceilings is not None
    assert report.record.ceilings.gemm_gflops["fp32"] > 1
    assert found["PyTorch fp32"].measurements
    assert {ratio.base for ratio in report.record.ratios} == {"PyTorch fp32"}
    norms = report.record.instance_norm
    assert norms is not None
    assert {row.form for row in norms.rows} == {"folded", "PyTorch eager"}
    assert max(row.relative_error for row in norms.rows if row.form == "folded") < 1e-5
    assert {row.size for row in norms.rows} >= {"97x131", "448x448"}


def test_what_cannot_be_explained_is_measured_all_the_same(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ceilings, profile and counted work only say why: without them the times are kept."""

    def refuse(*_a: Any, **_k: Any) -> Any:
        raise MissingDependencyError("this CPU has no such units")

    for place, name in ((ceilings, "measure"), (explain, "examine"), (roofline, "growth")):
        monkeypatch.setattr(place, name, refuse)
    report = bench(workspace, profile=True, batches=(1, 2), seconds=0.1)
    (export,) = report.record.engines
    assert (export.failed, export.blocks, export.blocks_shape) == ("", (), "")
    assert export.measurements
    assert report.record.ceilings is None
    why = "this CPU has no such units"
    assert set(report.record.notes) >= {
        f"left out: the ceilings of onnxruntime, since {why}",
        f"fp32 export, not profiled: {why}",
        f"fp32 export, its work is not counted: {why}",
    }
    assert store.read(Path(report.record_file)) == report.record


@pytest.mark.slow
def test_growth_is_told_of_several_shapes(workspace: Path) -> None:
    report = bench(workspace, batches=(1, 2))
    (row,) = report.record.growth
    assert (row.engine, row.small, row.large) == ("fp32 export", "1x3x224x224", "2x3x224x224")
    assert row.flops == pytest.approx(2)
    assert bench(workspace).record.growth == ()


def test_sensitivity_of_this_export_is_shown(workspace: Path) -> None:
    export = read_sidecar(workspace / "rest_nano.onnx")
    assert export is not None
    found = Sensitivity(
        command="rest-deploy sensitivity", recipe="int8", images=8, whole=1e-2,
        places=(PlaceError("stem.conv1", "stem", 1e-3, 0.1),),
    )  # fmt: skip
    stored = Stored(schema=1, identity="", scores={}, model_sha256=export.sha256, found=found)
    file = workspace / "rest_nano.int8.sensitivity.json"
    file.write_bytes(msgspec.json.encode(stored))
    assert bench(workspace).record.sensitivity == found
    assert last_sensitivity("rest_nano.onnx", "another", workspace) is None
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(stored, found=None)))
    assert last_sensitivity("rest_nano.onnx", export.sha256, workspace) is None, "unfinished"
    file.write_text("{")
    assert last_sensitivity("rest_nano.onnx", export.sha256, workspace) is None, "damaged"


def test_other_weights_are_left_out(workspace: Path, exported_nano: Path) -> None:
    shutil.copy(exported_nano, workspace / "fresh.onnx")
    shutil.copy(sidecar_path(exported_nano), workspace / "fresh.onnx.json")
    (workspace / "rest_nano.onnx").touch()  # the newest export
    (workspace / "stray.onnx").write_bytes(b"somebody's")
    engine(workspace, "damaged.onnx").write_bytes(b"x")
    found, notes = find((), workspace)
    assert [one.label for one in found] == ["fp32 export"]
    assert notes[1] == "left out: fresh.onnx has other weights than rest_nano.onnx"
    assert [note.split()[2] for note in notes] == [
        str(workspace / "damaged.onnx"), "fresh.onnx", str(workspace / "stray.onnx"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="these engines have different weights"):
        find((workspace / "rest_nano.onnx", workspace / "fresh.onnx"), workspace)


def test_engines_of_one_kind_carry_their_file(workspace: Path) -> None:
    paths = [engine(workspace, name) for name in ("a.onnx", "b.onnx")]
    found, _ = find(paths, workspace)
    assert [one.label for one in found] == [
        "fp32 onnxruntime (a.onnx)",
        "fp32 onnxruntime (b.onnx)",
    ]
    (through,) = find([engine(workspace, "c.onnx", provider="cuda")], workspace)[0]
    assert through.label == "fp32 onnxruntime-cuda"


@pytest.mark.parametrize("sees", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pytorch_on_the_gpu_beside_engines_for_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, sees: bool
) -> None:
    """Where torch sees the GPU it is what the others are compared with. The CPU plays both."""
    cpu = providers.PROVIDERS["cpu"].ort_name
    monkeypatch.setitem(
        providers.PROVIDERS, "cuda", replace(providers.PROVIDERS["cuda"], ort_name=cpu)
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    asked: list[str] = []

    def eager(module: Any, threads: int, outputs: Any, device: str) -> Eager:
        asked.append(device)
        return Eager(module, threads, outputs)

    monkeypatch.setattr("rest_deploy.model.eager.Eager", eager)
    file = engine(workspace, "c.onnx", provider="cuda")
    record = bench(workspace, file, pytorch=True, in_flight=1, seconds=0.1).record
    backends = {one.label: one.backend for one in record.engines}
    on_gpu = {"PyTorch fp32, cuda": "PyTorch/cuda"} if sees else {}
    assert backends == {
        **on_gpu, "PyTorch fp32": "PyTorch", "fp32 onnxruntime-cuda": "onnxruntime/cuda",
    }  # fmt: skip
    assert {ratio.base for ratio in record.ratios} == {next(iter(backends))}
    assert set(asked) == ({"cpu", "cuda"} if sees else {"cpu"})
    assert sees != any("PyTorch on the GPU" in note for note in record.notes)
    assert "ONNX Runtime (cuda)" in record.advice


def test_nothing_to_measure(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no exported model"):
        bench(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="no such engine"):
        bench(workspace, workspace / "none.onnx")
    sidecar_path(workspace / "rest_nano.onnx").unlink()
    with pytest.raises(ArtifactError, match="has no sidecar"):
        bench(workspace, workspace / "rest_nano.onnx")
