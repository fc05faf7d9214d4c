"""What a file says of itself."""

from __future__ import annotations

from pathlib import Path

from rest_deploy.artifact import SIDECAR_SUFFIX, Sidecar, read_sidecar, sha256_file
from rest_deploy.contracts import ModelMetadata, Struct
from rest_deploy.errors import ArtifactError, require
from rest_deploy.verbs.verify import open_session


class Inspection(Struct, frozen=True):
    """What a file says of itself. `sidecar` for exported models, `checkpoint` for weights."""

    file: str
    kind: str
    size_bytes: int
    sha256: str
    metadata: ModelMetadata | None = None
    sidecar: Sidecar | None = None
    tensors: int = 0
    parameters: int = 0
    num_classes: int = 0
    fits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def inspect(file: Path) -> Inspection:
    """Describe an ONNX model, an engine, their sidecars, or a checkpoint, without running it; an
    engine needs neither TensorRT nor a GPU for that.

    Raises `ArtifactError` or `CheckpointError` when the file is damaged or of another kind.
    """
    if not file.is_file():
        raise ArtifactError(f"no such file: {file}")
    if file.name.endswith((".onnx" + SIDECAR_SUFFIX, ".engine" + SIDECAR_SUFFIX)):
        return inspect(file.with_name(file.name.removesuffix(SIDECAR_SUFFIX)))
    size, sha256 = file.stat().st_size, sha256_file(file)
    if file.suffix == ".engine":
        from rest_deploy.runtime.loading import read_sealed

        described = read_sealed(file)
        if described is None:
            raise ArtifactError(f"{file} has no sidecar: nothing says what it is")
        if described.sha256 != sha256:
            raise ArtifactError(
                f"{file} has sha256 {sha256[:12]}, its sidecar describes {described.sha256[:12]}",
                hint=described.command,
            )
        return Inspection(
            file=str(file),
            kind="engine",
            size_bytes=size,
            sha256=sha256,
            metadata=described.metadata,
            sidecar=described,
        )
    if file.suffix == ".onnx":
        sidecar = read_sidecar(file)
        metadata = sidecar.metadata if sidecar else open_session(file, file.parent).metadata
        return Inspection(
            file=str(file),
            kind="onnx",
            size_bytes=size,
            sha256=sha256,
            metadata=metadata,
            sidecar=sidecar,
        )
    if file.suffix in {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}:
        require("torch", "export")
        from rest_deploy.model.checkpoint import read_checkpoint
        from rest_deploy.model.fit import fitting_variants

        checkpoint = read_checkpoint(file)
        classes = checkpoint.num_classes
        return Inspection(
            file=str(file),
            kind="checkpoint",
            size_bytes=size,
            sha256=sha256,
            tensors=len(checkpoint.state),
            parameters=sum(value.numel() for value in checkpoint.state.values()),
            num_classes=classes,
            fits=tuple(fitting_variants(checkpoint.state)),
            notes=checkpoint.notes,
        )
    raise ArtifactError(
        f"{file} has the suffix {file.suffix!r}; expected .onnx or .engine, their .json, .pth or "
        ".safetensors"
    )
