"""Which engines of a workspace can be compared: of the same weights, with the same outputs."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rest_deploy.artifact import TEMPORARY_PREFIX, Sidecar, newest, read_sidecar
from rest_deploy.contracts import ModelMetadata
from rest_deploy.errors import ArtifactError, InputError


@dataclass(frozen=True)
class Found:
    """An engine of the workspace."""

    path: Path
    label: str
    metadata: ModelMetadata
    sidecar: Sidecar


def find(engines: Sequence[Path], workspace: Path) -> tuple[list[Found], list[str]]:
    """engines: as named; none: all of the workspace with the weights of its newest export. Returns
    them, the export first, and a note for each that was left out.

    Raises `InputError` when there is none, `ArtifactError` for a named one that is damaged.
    """
    notes: list[str] = []
    if engines:
        read = [(path, _sidecar(path)) for path in engines]
    else:
        export = newest(workspace, ".onnx")
        read = [(export, _sidecar(export))]
        state = read[0][1].metadata.weights.state_sha256
        for path in _artifacts(workspace):
            if path == export:
                continue
            try:
                sidecar = _sidecar(path)
            except ArtifactError as error:
                notes.append(f"left out: {error.message}")
                continue
            if sidecar.metadata.weights.state_sha256 != state:
                notes.append(f"left out: {path.name} has other weights than {export.name}")
            elif sidecar.metadata.gives != read[0][1].metadata.gives:
                notes.append(f"left out: {path.name} has other outputs than {export.name}")
            else:
                read.append((path, sidecar))
    states = {sidecar.metadata.weights.state_sha256 for _, sidecar in read}
    if len(states) > 1:
        raise InputError("these engines have different weights: nothing to compare them by")
    if len({sidecar.metadata.gives for _, sidecar in read}) > 1:
        raise InputError("these engines have different outputs: nothing to compare them by")
    return _labelled(read), notes


def _artifacts(workspace: Path) -> list[Path]:
    found = (*workspace.glob("*.onnx"), *workspace.glob("*.engine"))
    return sorted(path for path in found if not path.name.startswith(TEMPORARY_PREFIX))


def _sidecar(path: Path) -> Sidecar:
    if not path.is_file():
        raise ArtifactError(f"no such engine: {path}", hint="rest-deploy build-engine --int8")
    sidecar = read_sidecar(path)
    if sidecar is None:
        raise ArtifactError(f"{path} has no sidecar: nothing says what it is")
    return sidecar


def _labelled(read: Sequence[tuple[Path, Sidecar]]) -> list[Found]:
    """ "int8 onnxruntime", with the file's name where two would be called the same."""
    names = [_label(sidecar) for _, sidecar in read]
    counts = Tally(names)
    return [
        Found(
            path=path,
            label=name if counts[name] == 1 else f"{name} ({path.name})",
            metadata=sidecar.metadata,
            sidecar=sidecar,
        )
        for name, (path, sidecar) in zip(names, read, strict=True)
    ]


def _label(sidecar: Sidecar) -> str:
    build = sidecar.build
    if build is None:
        return "fp32 export"
    through = f"-{build.provider}" if build.provider else ""
    return f"{build.precision} {build.backend}{through}"
