"""May this engine be loaded here? Decided from its sidecar, before a byte of it is deserialized.

A serialized engine is an executable artifact: NVIDIA says to treat one from elsewhere as untrusted
native code. Its own validity check is not made against tampering, so the bytes are hashed, and the
very bytes that were hashed are the ones that are handed on.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rest_deploy.artifact import SIDECAR_SUFFIX, Sidecar, seal_of, sidecar_path, to_json
from rest_deploy.contracts import EngineFit
from rest_deploy.cuda_driver import Driver
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.errors import ArtifactError, MissingDependencyError


@dataclass(frozen=True)
class Here:
    """This machine, as far as engines care. versions: of the installed flavours; sm: compute
    capability of the GPU, "" without one; cuda: newest that the driver runs."""

    versions: dict[str, str]
    sm: str
    cuda: tuple[int, int]


RTX_MAGIC = b"vtrt"
"""First bytes of a TensorRT-RTX engine, as 1.7.1 writes them; TensorRT's begin otherwise."""


def examine(ordinal: int = 0) -> Here:
    """Installed flavours and the GPU of that number; nothing is loaded of either but its version.

    Raises `MissingDependencyError` for a number that none has.
    """
    from rest_deploy.engine import tensorrt

    versions: dict[str, str] = {
        flavour: tensorrt.version(flavour)
        for flavour in tensorrt.MODULES
        if tensorrt.why_not(flavour) is None
    }
    try:
        driver = Driver()
        count = driver.count()
    except MissingDependencyError:
        return Here(versions, "", (0, 0))
    if ordinal >= count:
        raise MissingDependencyError(
            f"there is no GPU {ordinal}: {count} of them, counted from 0",
            hint="rest-deploy doctor lists them",
        )
    gpu = driver.gpu(ordinal)
    return Here(versions, "".join(map(str, gpu.compute_capability)), driver.cuda_version())


def check_engine(path: Path, here: Here) -> tuple[bytes, Sidecar]:
    """The engine's bytes and its sidecar, after all checks.

    Raises `ArtifactError` for what is damaged, foreign or built for elsewhere, with both sides and
    the command that builds it again, `MissingDependencyError` for what this machine lacks.
    """
    try:
        engine = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read the engine {path}: {error.strerror}") from error
    sidecar = read_sealed(path)
    if sidecar is None:
        raise ArtifactError(
            f"{path} has no sidecar {path.name}{SIDECAR_SUFFIX}: nothing says what it is or who "
            "built it, and loading an engine runs its code",
            hint="build it here: rest-deploy build-engine; or, if you built it yourself, "
            "--trust MODEL with the export it was made from",
        )
    actual = hashlib.sha256(engine).hexdigest()
    if actual != sidecar.sha256:
        raise ArtifactError(
            f"{path} has sha256 {actual[:12]}, its sidecar describes {sidecar.sha256[:12]}: it was "
            "damaged or replaced",
            hint=sidecar.command,
        )
    fit = sidecar.build.fit if sidecar.build else None
    if sidecar.kind != "engine" or fit is None:
        raise ArtifactError(f"the sidecar of {path} describes no engine", hint=sidecar.command)
    check_fit(path, fit, here, sidecar.command)
    return engine, sidecar


def flavour_of(sidecar: Sidecar) -> Flavour:
    """Of an engine that `check_engine` let pass."""
    assert sidecar.build is not None
    assert sidecar.build.fit is not None
    return sidecar.build.fit.flavour


def check_weights(path: Path, sidecar: Sidecar) -> None:
    """Raise `ArtifactError` for an engine that was built without its weights."""
    assert sidecar.build is not None
    if sidecar.build.fit is not None and "strip-weights" in sidecar.build.fit.options:
        raise ArtifactError(
            f"{path} was built without its weights (--strip-weights)",
            hint=f"rest-deploy refit {path} --checkpoint F",
        )


def check_unknown(path: Path, here: Here) -> tuple[bytes, Flavour]:
    """An engine that the user vouches for: its bytes, and the flavour that its first ones tell.

    Raises `ArtifactError`, and `MissingDependencyError` for what this machine lacks.
    """
    try:
        engine = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read the engine {path}: {error.strerror}") from error
    flavour: Flavour = "tensorrt-rtx" if engine.startswith(RTX_MAGIC) else "tensorrt"
    if flavour not in here.versions:
        raise MissingDependencyError(
            f"{path} looks like a {flavour} engine, and {flavour} is not installed",
            hint=f"pip install 'rest-deploy[{flavour}]'",
        )
    _check_gpu(path, here)
    return engine, flavour


def read_sealed(path: Path) -> Sidecar | None:
    """The sidecar of an engine, None when there is none. Raises `ArtifactError` when one byte of it
    is not as it was written."""
    beside = sidecar_path(path)
    if not beside.is_file():
        return None
    try:
        text = beside.read_bytes()
        sidecar = msgspec.json.decode(text, type=Sidecar)
    except OSError as error:
        raise ArtifactError(f"cannot read {beside}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ArtifactError(
            f"the sidecar {beside} is damaged: {error}", hint="rest-deploy build-engine"
        ) from error
    if sidecar.seal != seal_of(sidecar) or text != to_json(sidecar).encode():
        raise ArtifactError(
            f"the sidecar {beside} was changed after it was written",
            hint="rest-deploy build-engine",
        )
    return sidecar


def check_fit(path: Path, fit: EngineFit, here: Here, command: str) -> None:
    """Raise `ArtifactError` or `MissingDependencyError` unless such an engine runs here.

    command: the one that built it.
    """
    version = here.versions.get(fit.flavour)
    if version is None:
        raise MissingDependencyError(
            f"{path} is a {fit.flavour} {fit.version} engine, and {fit.flavour} is not installed",
            hint=f"pip install 'rest-deploy[{fit.flavour}]'",
        )
    if version != fit.version and "version-compatible" not in fit.options:
        raise ArtifactError(
            f"{path} was built by {fit.flavour} {fit.version}, here is {version}: engines fit the "
            "version that built them",
            hint=command,
        )
    _check_gpu(path, here)
    if fit.sms and here.sm not in fit.sms:
        again = shlex.split(command)
        if "--target-sm" in again:
            again[again.index("--target-sm") + 1] = here.sm
        elif fit.flavour == "tensorrt-rtx":
            again += ["--target-sm", here.sm]
        raise ArtifactError(
            f"{path} was built for compute capability {', '.join(fit.sms)}, the GPU here has "
            f"{here.sm}",
            hint=shlex.join(again),
        )
    if fit.driver:
        major, _, minor = fit.driver.partition(".")
        if here.cuda < (int(major), int(minor)):
            raise ArtifactError(
                f"{path} was built with a driver for CUDA {fit.driver}, the driver here runs up to "
                f"CUDA {here.cuda[0]}.{here.cuda[1]}",
                hint=f"update the driver, or {command}",
            )


def _check_gpu(path: Path, here: Here) -> None:
    if not here.sm:
        raise MissingDependencyError(
            f"{path} runs on an NVIDIA GPU, and none is here",
            hint="rest-deploy doctor shows what is missing; --backend onnxruntime runs on a CPU",
        )
