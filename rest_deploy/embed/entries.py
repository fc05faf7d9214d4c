"""What is to be read, one line an image, on disk: a run's memory does not grow with its sources.

The list file is the order of the work and, by its hash, its identity. Each line is a JSON array
`[id, place, row, stamp]`: what the answer is filed under; the path or URI ("" where the id is it);
the row of a Parquet file, -1 for an image file; size and time of change where listing tells them,
so that an image that was replaced makes another list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from rest_deploy.errors import InputError

BUCKETS = 256
"""Files that the hashes of ids are sorted into: one of them at a time is in memory."""

_DIGEST = 16


class Entry(NamedTuple):
    """One image. `row` -1: `location` is the image; else the row of the Parquet file there."""

    id: str
    place: str = ""
    row: int = -1
    stamp: str = ""

    @property
    def location(self) -> str:
        return self.place or self.id


@dataclass(frozen=True)
class Listed:
    """A finished list: its file, its sha256, and the byte offset at which each shard begins."""

    path: Path
    sha256: str
    count: int
    shard: int
    offsets: tuple[int, ...]

    def size_of(self, shard: int) -> int:
        """Images of that shard: all alike but the last."""
        return min(self.shard, self.count - shard * self.shard)


def write_list(entries: Iterable[Entry], path: Path, shard: int) -> Listed:
    """Write the list to `path` (its folder exists). shard: images of one.

    Raises `InputError` when there is nothing in it, or an id twice: answers are filed under ids.
    """
    digest, count, offsets, position = hashlib.sha256(), 0, [], 0
    folder = path.with_name(f"{path.name}.ids")
    folder.mkdir()
    buckets = [(folder / f"{index:02x}").open("wb") for index in range(BUCKETS)]
    try:
        with path.open("wb") as stream:
            for entry in entries:
                if count % shard == 0:
                    offsets.append(position)
                line = _line(entry)
                position += stream.write(line)
                digest.update(line)
                key = hashlib.blake2b(entry.id.encode(), digest_size=_DIGEST).digest()
                buckets[key[0]].write(key)
                count += 1
    finally:
        for bucket in buckets:
            bucket.close()
    if not count:
        raise InputError("the sources hold no image")
    listed = Listed(path, digest.hexdigest(), count, shard, tuple(offsets))
    _refuse_duplicates(folder, listed)
    return listed


def _line(entry: Entry) -> bytes:
    try:
        return msgspec.json.encode(entry) + b"\n"
    except UnicodeEncodeError as error:
        raise InputError(
            f"the name {entry.id!r} is not UTF-8, and Parquet has no other text",
            hint="rename it, or give a list file without it",
        ) from error


def read_entries(path: Path, offset: int, count: int) -> Iterator[Entry]:
    """`count` entries of the list file, from the line that begins at byte `offset`."""
    with path.open("rb") as stream:
        stream.seek(offset)
        for _, line in zip(range(count), stream, strict=False):
            yield msgspec.json.decode(line, type=Entry)


def _refuse_duplicates(folder: Path, listed: Listed) -> None:
    """Raise `InputError` naming ids that are there twice; removes the hashes otherwise."""
    twice: set[bytes] = set()
    for bucket in sorted(folder.iterdir()):
        keys = np.frombuffer(bucket.read_bytes(), dtype=f"V{_DIGEST}")
        # Compared as two integers: numpy cannot sort raw bytes.
        pairs = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        alike = (pairs[order][1:] == pairs[order][:-1]).all(axis=1)
        twice.update(keys[order[1:][alike]].tolist()[:3])
        bucket.unlink()
    folder.rmdir()
    if not twice:
        return
    names = []
    for entry in read_entries(listed.path, 0, listed.count):
        key = hashlib.blake2b(entry.id.encode(), digest_size=_DIGEST).digest()
        if key in twice:
            twice.remove(key)
            names.append(entry.id)
    shown = ", ".join(sorted(names)[:3])
    raise InputError(
        f"the sources name the same id more than once, like {shown}; answers are filed under ids, "
        "each once",
        hint="a list file without repeated lines (sort -u), an --id-column of unlike values, or "
        "folders that do not hold each other",
    )
