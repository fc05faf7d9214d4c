"""TensorRT's timings of kernels, kept in a file between builds: trtexec's --timingCacheFile.

Only TensorRT takes such times while it builds; TensorRT-RTX has the methods and does nothing in
them. NVIDIA answers bytes it cannot read with a message and an empty cache: the build would go on,
and what is written back would replace the file. Here that is an error before the build.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rest_deploy.artifact import write_bytes
from rest_deploy.errors import ArtifactError, InputError

UNREADABLE = ("timing cache will not be used", "deserialize timing cache", "invalid timing cache")
"""In NVIDIA's messages about bytes that are no timing cache of this version and GPU."""


def check_place(path: Path) -> None:
    """Raise `InputError` for what is no place for a file, before anything is done."""
    if path.exists() and not path.is_file():
        raise InputError(f"--timing-cache {path} is not a file; expected one, or a new name")


def attach(config: Any, path: Path, messages: Sequence[str]) -> Any:
    """Give the builder's config the timings of `path`, or none when it does not exist yet.

    messages: the builder's log, which grows. Returns NVIDIA's cache, to be kept until the engine is
    built. Raises `ArtifactError` for a file that is damaged or of another version or GPU.
    """
    check_place(path)
    try:
        stored = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ArtifactError(f"cannot read the timing cache {path}: {error.strerror}") from error
    begun = len(messages)
    cache = config.create_timing_cache(stored)
    accepted = cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))
    said = [line for line in messages[begun:] if any(word in line for word in UNREADABLE)]
    if accepted and stored and not said:
        # Also where a version words it otherwise: bytes went in, and it is as one without any.
        empty = bytes(config.create_timing_cache(b"").serialize())
        accepted = stored == empty or bytes(cache.serialize()) != empty
    if stored and (said or not accepted):
        why = said or messages[begun:]
        raise ArtifactError(
            f"{path} is damaged, or no timing cache of this TensorRT and GPU; NVIDIA's "
            f"builder says: {' '.join(' '.join(why).split())[:200] or 'nothing'}",
            hint="--timing-cache with another name (a new file is made), or delete that one",
        )
    if not accepted:
        raise ArtifactError(
            "NVIDIA's builder takes no timing cache here", hint="without --timing-cache"
        )
    return cache


def contents(config: Any) -> bytes:
    """What there is to store after a build: what was read and what was timed."""
    return bytes(config.get_timing_cache().serialize())


def store(path: Path, timings: bytes) -> None:
    """Replace the file atomically. Raises `OutputError`."""
    write_bytes(path, timings)
