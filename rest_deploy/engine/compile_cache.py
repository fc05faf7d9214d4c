"""Compiled models on disk, so that a process starts without compiling: whole, or not used.

OpenVINO's own CACHE_DIR loads a damaged blob without a word: of 26 files with one byte changed, 18
were loaded and 4 of them answered with other logits (rest_nano, INT8). Here every blob carries a
hash over what it was compiled from and over its bytes; where that does not fit it is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from pathlib import Path

from rest_deploy.artifact import write_bytes
from rest_deploy.errors import OutputError

log = logging.getLogger(__name__)

DIGEST = 32

SUFFIX = ".blob"

KEPT = 16
"""Blobs in one folder: the one of any shape and those of the shapes a service had last."""


class CompileCache:
    """The blobs of one model file. key: all they depend on, e.g. hash, version, CPU, threads."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._key = hashlib.sha256(key.encode()).digest()
        self.digests: dict[str, str] = {}
        """Name -> what the blob that was loaded or saved begins with: hash of key and bytes."""

    def path(self, name: str) -> Path:
        """name: which of them, "dynamic" or "8x3x224x224"; the key is in the file's name too, so
        that two settings do not take turns in replacing each other's blob."""
        return self.folder / f"{re.sub(r'[^0-9a-z]', '-', name)}-{self._key.hex()[:12]}{SUFFIX}"

    def load(self, name: str) -> bytes | None:
        """What was saved under that name, None when there is nothing or it is not whole."""
        path = self.path(name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the compile cache %s is not read: %s", path, error.strerror)
            return None
        payload = content[DIGEST:]
        if content[:DIGEST] != self._digest(name, payload):
            log.warning("the compile cache %s is damaged: compiled anew", path)
            return None
        self.digests[name] = content[:DIGEST].hex()
        return payload

    def save(self, name: str, payload: bytes) -> None:
        """A folder that cannot be written is said and costs nothing but the time of compiling."""
        digest = self._digest(name, payload)
        try:
            write_bytes(self.path(name), digest + payload)
        except OutputError as error:
            log.warning("the compile cache is not kept: %s", error.message)
            return
        self.digests[name] = digest.hex()
        with contextlib.suppress(OSError):  # another process prunes too
            found = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime_ns)
            for old in found[:-KEPT]:
                old.unlink(missing_ok=True)

    def _digest(self, name: str, payload: bytes) -> bytes:
        return hashlib.sha256(self._key + name.encode() + b"\0" + payload).digest()
