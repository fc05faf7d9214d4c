"""A Triton model repository: written whole or not at all, and checked.

    DIR/NAME/config.pbtxt, labels.txt, 1/ENGINE
    DIR/NAME_preprocess, NAME_rank, NAME_classify, NAME_embed   the ensembles

Every folder carries `MARKER`: what was written there, by which hash. It tells our folders from
others', and edited ones from those that may be replaced.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal

import msgspec

from rest_deploy import __version__
from rest_deploy.artifact import (
    TEMPORARY_PREFIX,
    publish_folders,
    sha256_file,
    staging,
    to_json,
)
from rest_deploy.contracts import SMALLEST_SIDE, Struct
from rest_deploy.cuda_driver import Driver
from rest_deploy.errors import (
    ArtifactError,
    InputError,
    InvariantError,
    MissingDependencyError,
    OutputError,
)
from rest_deploy.layout import layout_of
from rest_deploy.serve import triton_schema
from rest_deploy.serve.triton_check import CONFIG_FILE, needs_gpu, problems
from rest_deploy.serve.triton_config import ModelConfig, render
from rest_deploy.serve.triton_models import Model, Wishes, models, names, shapes, whole_of
from rest_deploy.serve.triton_source import Source, check_shapes, examine

MARKER = "rest-deploy.json"


class Marker(Struct, frozen=True):
    """files: sha256 by path in the folder, of all but the marker."""

    schema: Literal[1]
    made_by: str
    engine: str
    engine_sha256: str
    files: dict[str, str]


class Repository(Struct, frozen=True):
    """What was written. models: folders; whole: the one that takes encoded images, "" without, and
    for labels where there are two; takes: what the engine's input is; schema: what the files were
    checked against, "" when they were not, `unchecked` says why."""

    root: str
    name: str
    backend: str
    engine: str
    models: tuple[str, ...]
    whole: str
    input_name: str
    takes: str
    schema: str
    unchecked: str
    warnings: tuple[str, ...]


class Checked(Struct, frozen=True):
    """What a repository's check found. notes: what is fine and worth knowing."""

    root: str
    models: tuple[str, ...]
    schema: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


def write(
    engine: Path, root: Path, wishes: Wishes, *, backend: str = "auto", force: bool = False
) -> Repository:
    """force: also replace folders that were edited or that somebody else wrote.

    Raises `ArtifactError` and `InputError` for an engine or wishes that do not go, `OutputError`.
    """
    source = examine(engine, backend)
    wishes = _filled(wishes, source)
    check_shapes(source, shapes(source, wishes))
    wanted = models(source, wishes)
    everything = names(wishes.name)
    ours = [model.name for model in wanted]
    if not force:
        for name in ours:
            _refuse_foreign(root / name)
    obsolete = [name for name in everything if name not in ours and read_marker(root / name)]
    with staging(root) as folder:
        for model in wanted:
            _lay(folder / model.name, model, source)
        _prove(folder, {model.name: model.config for model in wanted})
        publish_folders(folder, root, ours, obsolete)
    why = triton_schema.why_not()
    return Repository(
        root=str(root),
        name=wishes.name,
        backend=source.backend,
        engine=str(engine),
        models=tuple(ours),
        whole=whole_of(source, wishes.name) if wishes.ensemble else "",
        input_name=source.metadata.input_name,
        takes=layout_of(source.metadata.input_kind).words.rstrip(","),
        schema="" if why else triton_schema.version(),
        unchecked=why or "",
        warnings=tuple(_warnings(source, wanted[0].config)),
    )


def check(root: Path) -> Checked:
    """All models of a repository, whoever wrote them.

    Raises `InputError` for a folder that is none, `MissingDependencyError` without the schema.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder", hint="rest-deploy triton-repo ENGINE -o DIR")
    folders = [
        folder for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(TEMPORARY_PREFIX)
    ]  # fmt: skip
    if not folders:
        raise InputError(f"{root} has no models", hint="rest-deploy triton-repo ENGINE -o DIR")
    configs: dict[str, ModelConfig] = {}
    found: list[str] = []
    notes: list[str] = []
    for folder in folders:
        if not (folder / CONFIG_FILE).is_file():
            found.append(f"{folder.name}: {CONFIG_FILE} is missing")
            continue
        try:
            configs[folder.name] = triton_schema.parse(folder / CONFIG_FILE)
        except ArtifactError as error:
            found.append(f"{folder.name}: {error.message}")
        marker = read_marker(folder)
        if marker is None:
            notes.append(f"{folder.name}: not written by rest-deploy")
            continue
        changed = _changed(folder, marker)
        notes += [f"{folder.name}: {name} was edited" for name in changed if name == CONFIG_FILE]
        found += [
            f"{folder.name}: {name} is not the file that was written; rest-deploy triton-repo "
            "writes it again"
            for name in changed
            if name != CONFIG_FILE
        ]
    found += problems(root, configs)
    notes += [f"{name}: {_no_gpu()}" for name in configs if needs_gpu(configs[name]) and _no_gpu()]
    return Checked(
        root=str(root),
        models=tuple(folder.name for folder in folders),
        schema=triton_schema.version(),
        problems=tuple(found),
        notes=tuple(notes),
    )


def read_marker(folder: Path) -> Marker | None:
    """None for a folder that is not there or that rest-deploy did not write."""
    try:
        return msgspec.json.decode((folder / MARKER).read_bytes(), type=Marker)
    except (OSError, msgspec.DecodeError):
        return None


def _filled(wishes: Wishes, source: Source) -> Wishes:
    """With a name. Raises `InputError` for what no server takes."""
    name = wishes.name or source.metadata.card.name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise InputError(
            f"--name {name!r} is no model name; expected letters, digits, '_', '-' and '.'"
        )
    for height, width in wishes.sizes:
        if min(height, width) < SMALLEST_SIDE:
            raise InputError(
                f"--sizes {height}x{width}: expected at least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
            )
    return msgspec.structs.replace(wishes, name=name)


def _refuse_foreign(folder: Path) -> None:
    """Raise `InputError` for a folder that must not be replaced without being asked."""
    if not folder.exists():
        return
    marker = read_marker(folder)
    if marker is None:
        raise InputError(
            f"{folder} is there and was not written by rest-deploy",
            hint="another --name or -o, or --force to replace it",
        )
    if changed := _changed(folder, marker):
        raise InputError(
            f"{folder} was edited since it was written: {', '.join(changed)}",
            hint="another --name or -o, or --force to replace it",
        )


def _changed(folder: Path, marker: Marker) -> list[str]:
    return [
        name
        for name, sha256 in marker.files.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256
    ]


def _lay(folder: Path, model: Model, source: Source) -> None:
    """Write one model's folder."""
    comment = (
        f"{model.name}, written by rest-deploy {__version__} from {source.path.name}\n"
        f"(sha256 {source.sha256[:12]}). Edit it as you like: triton-check reads it again, and\n"
        "triton-repo does not replace an edited file without --force."
    )
    texts = {CONFIG_FILE: render(model.config, comment), **model.files}
    for name in (*texts, *model.copies):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, original in model.copies.items():
        shutil.copyfile(original, folder / name)
        expected = source.sha256 if original == source.path else sha256_file(original)
        if sha256_file(folder / name) != expected:
            raise OutputError(
                f"the copy of {original} has another sha256 than the file; nothing was changed",
                hint="the file was replaced meanwhile, or the disk is damaged: try again",
            )
    marker = Marker(
        schema=1,
        made_by=f"rest-deploy {__version__}",
        engine=source.path.name,
        engine_sha256=source.sha256,
        files={name: sha256_file(folder / name) for name in sorted((*texts, *model.copies))},
    )
    (folder / MARKER).write_text(to_json(marker), encoding="utf-8")


def _prove(folder: Path, configs: dict[str, ModelConfig]) -> None:
    """Raise `InvariantError` when a file does not say what it was made from, or breaks a rule."""
    found = problems(folder, configs)
    if triton_schema.why_not() is None:
        for name, config in configs.items():
            try:
                if triton_schema.parse(folder / name / CONFIG_FILE) != config:
                    found.append(f"{name}: {CONFIG_FILE} reads as something else")
            except ArtifactError as error:
                found.append(f"{name}: {error.message}")
    if found:
        raise InvariantError(f"the repository would not load: {'; '.join(found)}")


def _warnings(source: Source, config: ModelConfig) -> list[str]:
    found = []
    if source.metadata.weights.kind == "fresh":
        found.append("fresh weights (no --checkpoint): the answers mean nothing")
    if source.backend == "openvino":
        found.append("Triton's openvino backend does no batching here; --backend python does")
        if not source.bf16:
            found.append(
                "Triton's openvino backend cannot be told to compute in float32: on a CPU with "
                "bf16 units it computes in bf16, which the gate has not seen; --backend python "
                "computes as it was gated"
            )
    if source.backend == "tensorrt" and source.sidecar and source.sidecar.build:
        fit = source.sidecar.build.fit
        if fit is not None:
            found.append(
                f"the server's TensorRT must be {fit.version}, its GPU of compute capability "
                f"{', '.join(fit.sms)}"
            )
            if "version-compatible" in fit.options:
                found[-1] = (
                    f"start the server with --backend-config=tensorrt,version-compatible=true; its "
                    f"TensorRT must be {fit.version} or newer"
                )
    if needs_gpu(config) and (why := _no_gpu()):
        found.append(why)
    return found


def _no_gpu() -> str:
    """Why this machine cannot serve it; "" when it has a GPU."""
    try:
        count = Driver().count()
    except MissingDependencyError:
        count = 0
    return "" if count else "its instances need a GPU (KIND_GPU), and this machine has none"
