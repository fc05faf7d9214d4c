"""Which of Triton's backends an engine goes to, and what of it the server must know.

What the backends take was read in their sources (docs/triton.md names what follows from it).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rest_deploy.artifact import (
    Sidecar,
    data_path,
    data_sha256,
    read_sidecar,
    sha256_file,
    sidecar_path,
)
from rest_deploy.contracts import Dims, ModelMetadata, Profile
from rest_deploy.errors import ArtifactError, InputError, installed
from rest_deploy.layout import layout_of
from rest_deploy.runtime.loading import RTX_MAGIC, check_weights, read_sealed
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER
from rest_deploy.serve.triton_config import DataType
from rest_deploy.signature import SCORES, Output

Backend = Literal["onnxruntime", "tensorrt", "openvino", "python"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

IO_TYPES = {"float32": DataType.FP32, "float16": DataType.FP16}


@dataclass(frozen=True)
class Source:
    """An engine that was examined.

    io_type: of the engine's own float tensors. profiles: of an engine that is compiled for shapes.
    gpu: whether it runs on one; bf16: whether it is meant to compute in it. data: weights beside
    the file.
    """

    path: Path
    sha256: str
    metadata: ModelMetadata
    sidecar: Sidecar | None
    backend: Backend
    io_type: DataType
    profiles: tuple[Profile, ...]
    gpu: bool
    bf16: bool
    data: Path | None

    @property
    def tensor_type(self) -> DataType:
        """Of float tensors as the server sees them: `Session` casts."""
        return DataType.FP32 if self.backend == "python" else self.io_type

    @property
    def image_type(self) -> DataType:
        """Of the input."""
        return DataType.UINT8 if self.metadata.input_kind == "uint8" else self.tensor_type

    @property
    def scores(self) -> Output | None:
        """What classes are read from: logits, else probabilities."""
        for kind in SCORES:
            for output in self.metadata.gives:
                if output.kind == kind:
                    return output
        return None

    @property
    def embedding(self) -> Output | None:
        return next((one for one in self.metadata.gives if one.kind == "embedding"), None)

    @property
    def beside(self) -> Path | None:
        """Its sidecar, where it has one."""
        return None if self.sidecar is None else sidecar_path(self.path)


def examine(path: Path, wanted: str = "auto") -> Source:
    """wanted: a name of `BACKENDS`, or auto.

    An .onnx file is loaded, once; an .engine is not, since it may be for a GPU elsewhere.
    Raises `ArtifactError` for what is missing, damaged or unknown, `InputError` for a backend that
    cannot take it, `MissingDependencyError`.
    """
    if wanted not in ("auto", *BACKENDS):
        raise InputError(f"unknown backend {wanted!r}; there are auto, {', '.join(BACKENDS)}")
    if not path.is_file():
        raise ArtifactError(f"no such engine: {path}", hint="rest-deploy build-engine")
    if path.suffix == ".engine":
        return _engine(path, wanted)
    if path.suffix != ".onnx":
        raise ArtifactError(
            f"{path} has the suffix {path.suffix!r}; expected a .onnx model or a .engine"
        )
    return _onnx(path, wanted)


def check_shapes(source: Source, shapes: list[Dims]) -> None:
    """Raise `InputError` for a shape that no profile of the engine holds."""
    for shape in shapes:
        if source.profiles and not any(profile.holds(shape) for profile in source.profiles):
            largest = max(profile.maximum[0] for profile in source.profiles)
            words = "x".join(map(str, shape))
            raise InputError(
                f"no profile of {source.path} holds {words}",
                hint=f"--max-batch {largest} at most, other --sizes, or rest-deploy build-engine "
                f"--max-shapes {words} (inspect shows the profiles)",
            )


def _engine(path: Path, wanted: str) -> Source:
    sidecar = read_sealed(path)
    if sidecar is None:
        raise ArtifactError(
            f"{path} has no sidecar: nothing says what it is or who built it, and a server that "
            "loads it runs its code",
            hint="rest-deploy build-engine",
        )
    actual = sha256_file(path)
    if actual != sidecar.sha256:
        raise ArtifactError(
            f"{path} has sha256 {actual[:12]}, its sidecar describes {sidecar.sha256[:12]}: it was "
            "damaged or replaced",
            hint=sidecar.command,
        )
    build = sidecar.build
    if sidecar.kind != "engine" or build is None or build.fit is None:
        raise ArtifactError(f"the sidecar of {path} describes no engine", hint=sidecar.command)
    check_weights(path, sidecar)
    if wanted in ("onnxruntime", "openvino"):
        raise InputError(
            f"{path} is an engine of TensorRT; Triton's {wanted} backend takes .onnx files",
            hint="--backend tensorrt or --backend python",
        )
    with path.open("rb") as stream:
        rtx = build.fit.flavour == "tensorrt-rtx" or stream.read(len(RTX_MAGIC)) == RTX_MAGIC
    if rtx and wanted != "python":
        raise InputError(
            f"{path} is a TensorRT-RTX engine; Triton's tensorrt backend is built with TensorRT "
            "and cannot load it",
            hint="--backend python, which opens it with rest_deploy.Session; or an engine of "
            "build-engine --backend tensorrt",
        )
    return Source(
        path=path,
        sha256=sidecar.sha256,
        metadata=sidecar.metadata,
        sidecar=sidecar,
        backend="python" if wanted == "python" else "tensorrt",
        io_type=IO_TYPES[build.io_type],
        profiles=build.fit.profiles,
        gpu=True,
        bf16=False,
        data=None,
    )


def _onnx(path: Path, wanted: str) -> Source:
    if wanted == "tensorrt":
        raise InputError(
            f"{path} is an ONNX model; Triton's tensorrt backend takes engines",
            hint="rest-deploy build-engine --backend tensorrt, on a machine with the server's GPU",
        )
    sidecar = read_sidecar(path)
    build = sidecar.build if sidecar else None
    for_openvino = build is not None and build.backend == "openvino"
    provider = (build.provider if build else "") or "cpu"
    own: Backend = "onnxruntime"
    if for_openvino or provider not in ("cpu", "cuda"):
        own = "python"
    backend = next((name for name in BACKENDS if name == wanted), own)
    built_for = build.backend if build else ""
    if {built_for, backend} == {"onnxruntime", "openvino"}:
        raise InputError(
            f"{path} was built and gated for {built_for}, not for {backend}",
            hint=f"--backend python; or rest-deploy build-engine --backend {backend}",
        )
    # The provider of a GPU elsewhere is not needed to see what goes in and out.
    here = "onnxruntime" if installed("onnxruntime") and not for_openvino else "openvino"
    with Session.open(
        path,
        backend=here,
        provider="cpu" if here == "onnxruntime" else None,
        specialize=NEVER,
        selftest=False,  # it is for another machine
    ) as session:
        metadata = session.metadata
        (image,), answers = session.runner.inputs, session.runner.outputs
    layout = layout_of(metadata.input_kind)
    named = dict(zip(layout.names(), image.shape, strict=False))
    free = [axis for axis in ("batch", "height", "width") if isinstance(named.get(axis), str)]
    if len(image.shape) != 4 or named["channels"] != 3 or len(free) != 3:
        raise ArtifactError(
            f"{path} takes {image.shape}; expected any batch, 3 channels, any height and width",
            hint="rest-deploy export",
        )
    given = [answer.name for answer in answers]
    described = [output.name for output in metadata.gives]
    if image.name != metadata.input_name or given != described:
        raise ArtifactError(
            f"{path} has the input {image.name!r} and the outputs {', '.join(given)}, its "
            f"description says {metadata.input_name!r} and {', '.join(described)}",
            hint="rest-deploy export",
        )
    weights = data_path(path)
    return Source(
        path=path,
        sha256=sidecar.sha256 if sidecar else sha256_file(path),
        metadata=metadata,
        sidecar=sidecar,
        backend=backend,
        io_type=IO_TYPES[answers[0].dtype],
        profiles=build.through.profiles if build and build.through else (),
        gpu=provider != "cpu",
        bf16=build is not None and "bf16" in (build.precision, build.rest),
        data=weights if data_sha256(path) else None,
    )
