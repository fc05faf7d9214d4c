"""Every file written: complete or not there, hashed, described by a sidecar.

A model `x.onnx` has its sidecar `x.onnx.json` beside it. Both are written under temporary names
in the same directory and get their final names by atomic renames, after all checks have passed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import msgspec

from rest_deploy.contracts import Build, ModelMetadata, Struct
from rest_deploy.errors import ArtifactError, InputError, OutputError

METADATA_KEY = "rest_deploy"
"""The ONNX metadata property that holds `ModelMetadata` as JSON."""

SIDECAR_SUFFIX = ".json"
DATA_SUFFIX = ".data"
TEMPORARY_PREFIX = ".rest-deploy-"
WORKSPACE_VARIABLE = "REST_DEPLOY_WORKSPACE"
DEFAULT_WORKSPACE = "build"


class Parity(Struct, frozen=True):
    """Outcome of a comparison with the reference, as stored in a sidecar: the worst of all outputs
    and cases. agreement: None where nothing is a class score.

    `bound`: what the largest relative error was held against: `card_bound`, or where that was
    exceeded and it is larger `float32_error`, PyTorch's own in float32 on the same images. Files of
    older versions have neither of the two, and the card's bound as `bound`.
    """

    reference: str
    relative_error: float
    max_abs_error: float
    agreement: float | None
    bound: float
    cases: tuple[str, ...]
    card_bound: float | None = None
    float32_error: float | None = None


class Sidecar(Struct, frozen=True):
    """The JSON beside an artifact: what it is, what it was made of, what was proven."""

    schema: Literal[1]
    kind: Literal["onnx", "engine"]
    file: str
    sha256: str
    size_bytes: int
    metadata: ModelMetadata
    parity: Parity | None
    passes: dict[str, int]
    command: str
    data_sha256: str = ""
    """Of the weights beside the model (`x.onnx.data`), where they do not fit inside it."""
    build: Build | None = None
    """Of an engine; None for an exported float model."""
    seal: str = ""
    """Of an engine: `seal_of` this sidecar, since the sidecar decides whether it is loaded."""


def sealed(sidecar: Sidecar) -> Sidecar:
    """With the hash over everything else it says."""
    return msgspec.structs.replace(sidecar, seal=seal_of(sidecar))


def seal_of(sidecar: Sidecar) -> str:
    """sha256 of the sidecar's JSON without its seal. Finds damage, not forgery: who can write the
    engine can write its sidecar."""
    bare = to_json(msgspec.structs.replace(sidecar, seal=""))
    return hashlib.sha256(bare.encode()).hexdigest()


def parse_metadata(text: str | None, path: Path) -> ModelMetadata:
    """Metadata JSON found in a model file -> value.

    Raises `ArtifactError` when there is none or when a field does not fit.
    """
    if text is None:
        raise ArtifactError(
            f"{path} was not written by rest-deploy: it carries no {METADATA_KEY!r} metadata",
            hint="export it from its checkpoint: rest-deploy export --checkpoint F --variant V",
        )
    try:
        return msgspec.json.decode(text, type=ModelMetadata)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ArtifactError(
            f"the metadata in {path} is not this version's: {error}", hint="export the model again"
        ) from error


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def to_json(value: Any) -> str:
    """Indented JSON of a struct or of plain values, keys in their defined order."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def workspace(option: Path | None) -> Path:
    """The folder for artifacts: `--workspace`, else $REST_DEPLOY_WORKSPACE, else ./build."""
    return option or Path(os.environ.get(WORKSPACE_VARIABLE) or DEFAULT_WORKSPACE)


def newest(directory: Path, suffix: str) -> Path:
    """The exported model of that suffix in `directory` whose file was written last.

    Engines made from it are not exports. Raises `InputError` when there is none.
    """
    found = [
        path
        for path in directory.glob(f"*{suffix}")
        if not path.name.startswith(TEMPORARY_PREFIX) and _is_export(path)
    ]
    if not found:
        raise InputError(
            f"no exported model in the workspace {directory}/",
            hint="rest-deploy export --variant lite",
        )
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _is_export(path: Path) -> bool:
    if not sidecar_path(path).is_file():
        return False
    try:
        sidecar = read_sidecar(path, check_hash=False)
    except ArtifactError:
        return True  # whoever opens it says what is wrong
    return sidecar is not None and sidecar.build is None


def sidecar_path(artifact: Path) -> Path:
    return artifact.with_name(artifact.name + SIDECAR_SUFFIX)


def data_path(artifact: Path) -> Path:
    """Where the weights of a model over 2 GB are."""
    return artifact.with_name(artifact.name + DATA_SUFFIX)


def data_sha256(artifact: Path) -> str:
    """Hash of the weights beside the model, "" when they are inside it."""
    path = data_path(artifact)
    return sha256_file(path) if path.is_file() else ""


def read_sidecar(artifact: Path, *, check_hash: bool = True) -> Sidecar | None:
    """The sidecar of `artifact`, or None when it has none.

    Raises `ArtifactError` when it is malformed or describes other bytes than those beside it.
    """
    path = sidecar_path(artifact)
    if not path.is_file():
        return None
    try:
        sidecar = msgspec.json.decode(path.read_bytes(), type=Sidecar)
        actual = sha256_file(artifact) if check_hash else sidecar.sha256
        data = data_sha256(artifact) if check_hash and sidecar.data_sha256 else sidecar.data_sha256
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ArtifactError(
            f"the sidecar {path} is damaged: {error}", hint="export the model again"
        ) from error
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename or path}: {error.strerror}") from error
    if actual != sidecar.sha256:
        raise ArtifactError(
            f"{artifact} has sha256 {actual[:12]}, its sidecar describes {sidecar.sha256[:12]}: "
            "one of the two was replaced",
            hint=f"export the model again, or delete {path.name} if the model is the one you want",
        )
    if data != sidecar.data_sha256:
        raise ArtifactError(
            f"{data_path(artifact)} is {'another file' if data else 'missing'}: the sidecar "
            f"describes weights with sha256 {sidecar.data_sha256[:12]}",
            hint="export the model again",
        )
    return sidecar


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """A temporary folder inside `directory` (same file system), removed on the way out.

    Leftovers of killed runs are swept first. Raises `OutputError` when nothing can be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        prefix = f"{TEMPORARY_PREFIX}{os.getpid()}@{platform.node()}-"
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=directory))
    except OSError as error:
        raise output_error(directory, error) from error
    try:
        yield folder
    except OSError as error:
        raise output_error(directory, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, target: Path, sidecar: Sidecar) -> None:
    """Give a checked artifact and its sidecar their names, replacing older ones atomically."""
    staged_sidecar = staged.with_name(staged.name + SIDECAR_SUFFIX)
    staged_sidecar.write_text(to_json(sidecar), encoding="utf-8")
    for path in (staged, staged_sidecar):
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    previous = staged.with_name(f"{staged.name}.previous")
    with _uninterrupted():
        if target.exists():
            try:
                os.link(target, previous)
            except OSError:  # a file system without hard links
                shutil.copyfile(target, previous)
        if data_path(staged).exists():
            os.replace(data_path(staged), data_path(target))
        os.replace(staged, target)
        try:
            os.replace(staged_sidecar, sidecar_path(target))
        except OSError:  # the model must not stand beside another one's sidecar
            if previous.exists():
                os.replace(previous, target)
            else:
                target.unlink()
            raise


def publish_folders(
    staged: Path, root: Path, names: Sequence[str], obsolete: Sequence[str] = ()
) -> None:
    """Move the folders `staged/NAME` to `root/NAME`; those of that name, and `obsolete` ones, go.

    All or none: where one cannot be moved, everything is put back. `staged` is on the same file
    system as `root`. Raises OSError.
    """
    for path in staged.rglob("*"):
        if path.is_file():
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
    aside = staged / f"{TEMPORARY_PREFIX}previous"
    aside.mkdir()
    removed: list[str] = []
    placed: list[str] = []
    with _uninterrupted():
        try:
            for name in (*names, *obsolete):
                if os.path.lexists(root / name):
                    os.replace(root / name, aside / name)
                    removed.append(name)
            for name in names:
                os.replace(staged / name, root / name)
                placed.append(name)
        except OSError:
            for name in placed:
                os.replace(root / name, staged / name)
            for name in removed:
                os.replace(aside / name, root / name)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically. Raises `OutputError`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file atomically. Raises `OutputError`."""
    with staging(path.parent) as folder:
        staged = folder / path.name
        staged.write_bytes(content)
        os.replace(staged, path)


def output_error(directory: Path, error: OSError) -> OutputError:
    """Translate the operating system's refusal into what to do about it."""
    reason = error.strerror or str(error)
    hint = "choose another place with --output-dir or --workspace"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"free space there, or {hint}"
    return OutputError(f"cannot write into {directory}: {reason}; nothing was changed", hint=hint)


def _sweep(directory: Path) -> None:
    """Remove staging folders whose process is gone: a killed run cannot clean up after itself.

    Only those of this machine: a shared folder may hold another's, whose processes are unknown.
    """
    for folder in directory.glob(f"{TEMPORARY_PREFIX}*"):
        process, _, rest = folder.name.removeprefix(TEMPORARY_PREFIX).partition("@")
        if rest.rpartition("-")[0] != platform.node():
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError, OverflowError):
            continue  # the process lives and belongs to somebody else, or the name is not ours


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for the two renames of one artifact."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        pending.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was installed by C code and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for held in pending:
            # Not os.kill: that lets any thread take it, and the main one learns of it too late.
            signal.raise_signal(held)
