"""Engines of every kind, as far as their sidecars go: nothing of them is built."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

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
from rest_deploy.contracts import Build, EngineFit, ModelMetadata, Profile

SMALL = Profile(minimum=(1, 3, 32, 32), optimum=(4, 3, 224, 224), maximum=(16, 3, 224, 224))
WIDE = Profile(minimum=(1, 3, 32, 32), optimum=(2, 3, 448, 448), maximum=(4, 3, 448, 448))


def onnx_for(exported: Path, path: Path, **build: Any) -> Path:
    """A copy of an export with the sidecar of an engine. build: of its `Build`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(exported, path)
    sidecar = read_sidecar(exported)
    assert sidecar is not None
    fields: dict[str, Any] = {
        "precision": "int8", "io_type": "float32", "obtained": {}, "source_sha256": "s", **build,
    }  # fmt: skip
    made = msgspec.structs.replace(sidecar, file=path.name, build=Build(**fields))
    sidecar_path(path).write_text(to_json(made))
    return path


def plan_for(
    exported: Path, path: Path, *, io_type: str = "float32", content: bytes = b"plan" * 99,
    **fit: Any,
) -> Path:  # fmt: skip
    """Bytes with the whole, sealed sidecar of a TensorRT engine. fit: of its `EngineFit`."""
    found = read_sidecar(exported)
    assert found is not None
    fields: dict[str, Any] = {
        "flavour": "tensorrt", "version": "10.14.1", "sms": ("89",), "driver": "13.0",
        "profiles": (SMALL, WIDE), "options": {}, "key": "k", "graph_sha256": "g",
        "build_seconds": 1.5, "layers": 3, "scratch_bytes": 1, **fit,
    }  # fmt: skip
    build = Build(
        precision="int8", backend=fields["flavour"], io_type=io_type, obtained={},
        source_sha256="s", fit=EngineFit(**fields),
    )  # fmt: skip
    with staging(path.parent) as folder:
        staged = folder / path.name
        staged.write_bytes(content)
        sidecar = Sidecar(
            schema=1, kind="engine", file=path.name, sha256=sha256_file(staged), size_bytes=4,
            metadata=found.metadata, parity=None, passes={}, command="rest-deploy build-engine",
            build=build,
        )  # fmt: skip
        publish(staged, path, sealed(sidecar))
    return path


def relabelled(metadata: ModelMetadata, **changes: Any) -> ModelMetadata:
    return msgspec.structs.replace(metadata, **changes)
