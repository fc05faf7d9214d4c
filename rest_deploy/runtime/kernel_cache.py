"""TensorRT-RTX's runtime cache on disk: kernels it compiled for this GPU, to start faster.

TensorRT-RTX compiles its kernels where it runs, anew at each start without this. The cache is
code that it will run, so it is kept beside the engine, in whose reach it is anyway, and its hash
covers the engine's: a damaged one, or one of another engine, is not handed on.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from rest_deploy.artifact import write_bytes
from rest_deploy.errors import OutputError

log = logging.getLogger(__name__)

DIGEST = 32


class KernelCache:
    """The file for one engine and one compute capability. engine_sha256: hex."""

    def __init__(self, path: Path, engine_sha256: str) -> None:
        self.path = path
        self._engine = bytes.fromhex(engine_sha256)
        self._saved = -1

    @classmethod
    def beside(cls, engine: Path, engine_sha256: str, sm: str) -> KernelCache:
        return cls(engine.with_name(f"{engine.name}.sm{sm}.kernels"), engine_sha256)

    def load(self) -> bytes | None:
        """What was saved, None when there is nothing or it is not whole."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the kernel cache %s is not read: %s", self.path, error.strerror)
            return None
        payload = content[DIGEST:]
        if content[:DIGEST] != self._digest(payload):
            log.warning("the kernel cache %s is damaged or another engine's: not used", self.path)
            return None
        self._saved = len(payload)
        return payload

    def save(self, payload: bytes) -> None:
        """Keep it if it has grown; the last of several processes wins, and none sees half a file.

        A folder that cannot be written is said and costs nothing but the time of compiling.
        """
        if len(payload) == self._saved:
            return
        try:
            write_bytes(self.path, self._digest(payload) + payload)
        except OutputError as error:
            log.warning("the kernel cache is not kept: %s", error.message)
        self._saved = len(payload)

    def _digest(self, payload: bytes) -> bytes:
        return hashlib.sha256(self._engine + payload).digest()
