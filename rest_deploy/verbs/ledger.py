"""What a long command has done so far, so that the next run of it goes on there.

`deploy.json` in the workspace: step -> the key of everything that went into it, the file that came
out and its hash. A step is done when its key is the same and the file is the one that was written.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from rest_deploy.artifact import sha256_file, to_json, write_text
from rest_deploy.contracts import Struct


class Done(Struct, frozen=True):
    """key: see `key_of`; file: relative to the ledger; sha256: of its bytes."""

    key: str
    file: str
    sha256: str


class Ledger:
    """Of one workspace; `record` writes it through, atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = _read(path)

    def done(self, step: str, key: str) -> Path | None:
        """The file of a step that need not be done again."""
        found = self._done.get(step)
        if found is None or found.key != key:
            return None
        file = self._path.parent / found.file
        return file if file.is_file() and sha256_file(file) == found.sha256 else None

    def record(self, step: str, key: str, file: Path) -> None:
        """The step is done. Raises `OutputError`."""
        relative = os.path.relpath(file.resolve(), self._path.parent.resolve())
        self._done[step] = Done(key=key, file=relative, sha256=sha256_file(file))
        write_text(self._path, to_json(self._done))


def key_of(*decides: Any) -> str:
    """Hash of everything that decides what comes out of a step: plain values and structs."""
    content = msgspec.json.encode(decides, order="deterministic", enc_hook=str)
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> dict[str, Done]:
    """Nothing is done where there is no ledger or a damaged one: the steps are done again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Done])
    except (OSError, msgspec.DecodeError, UnicodeError):
        return {}
