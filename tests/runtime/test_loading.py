"""Engines are refused before a byte is deserialized."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from rest_deploy.artifact import (
    Sidecar,
    publish,
    read_sidecar,
    sealed,
    sha256_file,
    sidecar_path,
    staging,
    to_json,
)
from rest_deploy.contracts import Build, EngineFit, Profile
from rest_deploy.errors import ArtifactError, InputError, MissingDependencyError, RestDeployError
from rest_deploy.runtime import loading
from rest_deploy.runtime import tensorrt as runtime
from rest_deploy.runtime.loading import Here, check_engine
from rest_deploy.runtime.session import Session

HERE = Here({"tensorrt-rtx": "1.7.1.116"}, "89", (13, 0))
FIT = EngineFit(
    flavour="tensorrt-rtx", version="1.7.1.116", sms=("86", "89"), driver="",
    profiles=(Profile(minimum=(1, 3, 32, 32), optimum=(1, 3, 32, 32), maximum=(1, 3, 64, 64)),),
    options={}, key="k", graph_sha256="g", build_seconds=1.5, layers=3, scratch_bytes=1,
)  # fmt: skip
COMMAND = "rest-deploy build-engine build/rest_nano.onnx --int8 --backend tensorrt-rtx"
FLIPS = 1000


@pytest.fixture
def engine(exported_nano: Path, tmp_path: Path) -> Path:
    return written(exported_nano, tmp_path / "x.engine")


def written(exported: Path, path: Path, **changes: Any) -> Path:
    """An "engine" with a whole sidecar; `changes`: of its fit."""
    metadata = read_sidecar(exported)
    assert metadata is not None
    build = Build(
        precision="int8", backend="tensorrt-rtx", io_type="float32", obtained={},
        source_sha256="s", fit=msgspec.structs.replace(FIT, **changes),
    )  # fmt: skip
    with staging(path.parent) as folder:
        staged = folder / path.name
        staged.write_bytes(np.random.default_rng(0).bytes(4096))
        sidecar = Sidecar(
            schema=1, kind="engine", file=path.name, sha256=sha256_file(staged), size_bytes=4096,
            metadata=metadata.metadata, parity=None, passes={}, command=COMMAND, build=build,
        )  # fmt: skip
        publish(staged, path, sealed(sidecar))
    return path


def test_a_whole_engine(engine: Path) -> None:
    found, sidecar = check_engine(engine, HERE)
    assert found == engine.read_bytes()
    assert sidecar.build is not None
    assert sidecar.build.fit == FIT


@pytest.mark.parametrize("which", ["engine", "sidecar"])
def test_every_flipped_bit_is_refused(engine: Path, which: str) -> None:
    victim = engine if which == "engine" else sidecar_path(engine)
    good = victim.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(FLIPS):
        position, bit = int(random.integers(len(good))), int(random.integers(8))
        bad = bytearray(good)
        bad[position] ^= 1 << bit
        victim.write_bytes(bytes(bad))
        with pytest.raises(ArtifactError):
            check_engine(engine, HERE)
    victim.write_bytes(good)
    check_engine(engine, HERE)


@pytest.mark.parametrize("size", [0, 1, 4095])
def test_truncated(engine: Path, size: int) -> None:
    engine.write_bytes(engine.read_bytes()[:size])
    with pytest.raises(ArtifactError, match="damaged or replaced") as caught:
        check_engine(engine, HERE)
    assert caught.value.hint == COMMAND


def test_reformatted_sidecar(engine: Path) -> None:
    beside = sidecar_path(engine)
    beside.write_text(beside.read_text().replace("  ", " "))
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        check_engine(engine, HERE)


def test_a_sidecar_that_was_edited(engine: Path) -> None:
    beside = sidecar_path(engine)
    beside.write_text(beside.read_text().replace('"86"', '"80"'))
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        check_engine(engine, HERE)


def test_no_sidecar(engine: Path) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"has no sidecar x\.engine\.json"):
        check_engine(engine, HERE)


def test_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read the engine"):
        check_engine(tmp_path / "none.engine", HERE)


def test_the_sidecar_of_an_export(exported_nano: Path, engine: Path) -> None:
    other = read_sidecar(exported_nano)
    assert other is not None
    foreign = sealed(msgspec.structs.replace(other, sha256=sha256_file(engine)))
    sidecar_path(engine).write_text(to_json(foreign))
    with pytest.raises(ArtifactError, match="describes no engine"):
        check_engine(engine, HERE)


ELSEWHERE: dict[str, tuple[dict[str, Any], Here, type[RestDeployError], str, str]] = {
    "other version": (
        {"version": "1.6.0.1"}, HERE, ArtifactError,
        "built by tensorrt-rtx 1.6.0.1, here is 1.7.1.116", COMMAND,
    ),
    "no package": (
        {}, Here({}, "89", (13, 0)), MissingDependencyError, "tensorrt-rtx is not installed",
        "pip install 'rest-deploy[tensorrt-rtx]'",
    ),
    "no GPU": (
        {}, Here(HERE.versions, "", (0, 0)), MissingDependencyError, "and none is here", "doctor",
    ),
    "other GPU": (
        {}, Here(HERE.versions, "120", (13, 0)), ArtifactError,
        "built for compute capability 86, 89, the GPU here has 120", f"{COMMAND} --target-sm 120",
    ),
    "older driver": (
        {"driver": "13.1"}, HERE, ArtifactError, "driver for CUDA 13.1, the driver here runs up to",
        "update the driver",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_built_for_elsewhere(exported_nano: Path, tmp_path: Path, name: str) -> None:
    changes, here, error, words, hint = ELSEWHERE[name]
    path = written(exported_nano, tmp_path / "x.engine", **changes)
    with pytest.raises(error, match=words) as caught:
        check_engine(path, here)
    assert hint in (caught.value.hint or "")


def test_version_compatible_engines_run_on_others(exported_nano: Path, tmp_path: Path) -> None:
    options = {"version-compatible": "True"}
    path = written(exported_nano, tmp_path / "x.engine", version="1.6.0.1", options=options)
    check_engine(path, HERE)


def test_session(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is checked before a GPU is touched."""
    monkeypatch.setattr(loading, "examine", lambda _: HERE)
    touched: list[str] = []
    monkeypatch.setattr(runtime, "open_cuda", lambda *_: touched.append("gpu"))
    runner = SimpleNamespace(backend="tensorrt-rtx")
    monkeypatch.setattr(runtime, "TensorRtRunner", lambda *_: runner)
    assert Session.open(engine).sidecar is not None
    assert touched == ["gpu"]
    engine.write_bytes(b"x")
    with pytest.raises(ArtifactError, match="damaged or replaced"):
        Session.open(engine)
    assert touched == ["gpu"]


def test_an_unknown_engine_needs_trust(
    engine: Path, exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "examine", lambda _: HERE)
    monkeypatch.setattr(runtime, "open_cuda", lambda *_: None)
    seen: list[Any] = []
    monkeypatch.setattr(runtime, "TensorRtRunner", lambda *given: seen.append(given[:2]))
    sidecar_path(engine).unlink()
    engine.write_bytes(b"vtrt of somebody")
    with pytest.raises(ArtifactError, match="nothing says what it is") as caught:
        Session.open(engine)
    assert "--trust MODEL" in (caught.value.hint or "")
    session = Session.open(engine, trust=exported_nano)
    assert (session.sidecar, session.metadata.variant) == (None, "nano")
    assert seen == [(engine.read_bytes(), "tensorrt-rtx")]
    engine.write_bytes(b"ptrt")
    with pytest.raises(MissingDependencyError, match="looks like a tensorrt engine"):
        Session.open(engine, trust=exported_nano)
    engine.write_bytes(b"vtrt")
    monkeypatch.setattr(loading, "examine", lambda _: Here(HERE.versions, "", (0, 0)))
    with pytest.raises(MissingDependencyError, match="runs on an NVIDIA GPU, and none is here"):
        Session.open(engine, trust=exported_nano)


def test_trust_does_not_cover_damage(
    engine: Path, exported_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar says what the engine must be; vouching is for engines without one."""
    monkeypatch.setattr(loading, "examine", lambda _: HERE)
    engine.write_bytes(b"vtrt")
    with pytest.raises(ArtifactError, match="damaged or replaced"):
        Session.open(engine, trust=exported_nano)


def test_providers_are_for_models(engine: Path) -> None:
    with pytest.raises(InputError, match="--provider cuda is for ONNX models"):
        Session.open(engine, provider="cuda")


def test_trust_is_for_engines(exported_nano: Path) -> None:
    with pytest.raises(InputError, match="is no engine"):
        Session.open(exported_nano, trust=exported_nano)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneGpu:
        def count(self) -> int:
            return 1

    monkeypatch.setattr(loading, "Driver", OneGpu)
    with pytest.raises(MissingDependencyError, match="there is no GPU 1: 1 of them"):
        loading.examine(1)
