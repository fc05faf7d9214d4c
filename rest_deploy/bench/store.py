"""Records as files: a name of its own for each, complete or not there, refused when unknown."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from rest_deploy.artifact import write_text
from rest_deploy.bench.record import Record
from rest_deploy.errors import ArtifactError, InvariantError

SCHEMA = 1


def write(record: Record, folder: Path) -> Path:
    """Write `bench-TIME-HASH.json` into the folder. An older record is never replaced: the name
    holds the time of the run and the hash of its content.

    Raises `OutputError`; `InvariantError` for a record that could not be read again, such as one
    with NaN in it, which JSON does not have.
    """
    text = msgspec.json.encode(record).decode() + "\n"
    try:
        again = msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError as error:
        raise InvariantError(f"the record cannot be stored: {error}") from error
    if again != record:
        raise InvariantError("the record cannot be stored: it would be read as another one")
    moment = "".join(letter for letter in record.created[:19] if letter.isalnum())
    path = folder / f"bench-{moment}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not path.exists():  # of that hash, it is this very record
        write_text(path, text)
    return path


def read(path: Path) -> Record:
    """Raises `ArtifactError` for what is missing, no record, or of another version."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"cannot read the record {path}: {error.strerror}", hint="rest-deploy bench writes one"
        ) from error
    try:
        found: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ArtifactError(
            f"{path} is no JSON, or was cut off: {error}", hint="rest-deploy bench"
        ) from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema is None:
        raise ArtifactError(f"{path} is no record of rest-deploy bench", hint="rest-deploy bench")
    if schema != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {schema!r}; this version reads schema {SCHEMA}",
            hint="read it with the version that wrote it, or measure again: rest-deploy bench",
        )
    try:
        return msgspec.json.decode(content, type=Record)
    except msgspec.DecodeError as error:
        raise ArtifactError(
            f"{path} is no record of rest-deploy bench, or of a newer one: {error}",
            hint="rest-deploy bench",
        ) from error
