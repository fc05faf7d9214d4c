"""The state of a running calibration on disk, so that an interrupted one goes on where it was.

Written at batch boundaries every few seconds: a state in the middle of a batch would count some
tensors and not others.
"""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rest_deploy.artifact import staging
from rest_deploy.quant.replay import Arrays, Running

SAVE_SECONDS = 10.0


class State:
    """One file for all phases of a calibration; a file of another calibration is not used."""

    def __init__(self, path: Path | None, identity: str) -> None:
        """path: None keeps nothing. identity: of model, images and recipe."""
        self.path = path
        self._identity = hashlib.sha256(identity.encode()).hexdigest()
        self.arrays: Arrays = self._read()

    def phase(self, name: str) -> StoredPhase:
        return StoredPhase(self, name)

    def write(self) -> None:
        if self.path is None:
            return
        with staging(self.path.parent) as folder:
            staged = folder / self.path.name
            with staged.open("wb") as stream:
                np.savez(stream, identity=np.array(self._identity), **self.arrays)  # type: ignore[arg-type]  # numpy types its keywords as allow_pickle: bool
            staged.replace(self.path)

    def discard(self) -> None:
        """The calibration is complete: the file has done its duty."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> Arrays:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                if str(stored["identity"]) != self._identity:
                    return {}
                return {name: stored[name] for name in stored.files if name != "identity"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}  # damaged: starting anew loses minutes, not results


class StoredPhase:
    """One pass over the images; see `replay.Phase`."""

    def __init__(self, state: State, name: str) -> None:
        self._state, self._name = state, name
        self._saved = time.monotonic()

    def restore(self, items: Mapping[str, Running]) -> int:
        arrays = self._state.arrays
        if f"{self._name}/done" not in arrays:
            return 0
        for name, item in items.items():
            prefix = f"{self._name}/of/{name}/"
            item.restore({key.removeprefix(prefix): value for key, value in arrays.items()
                          if key.startswith(prefix)})  # fmt: skip
        return int(np.asarray(arrays[f"{self._name}/done"], np.int64))

    def offer(self, done: int, items: Mapping[str, Running]) -> None:
        arrays = self._state.arrays
        if self._state.path is None or time.monotonic() - self._saved < SAVE_SECONDS:
            return
        arrays[f"{self._name}/done"] = np.array(done)
        for name, item in items.items():
            for key, value in item.state().items():
                arrays[f"{self._name}/of/{name}/{key}"] = value
        self._state.write()
        self._saved = time.monotonic()
