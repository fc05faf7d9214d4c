"""What a bulk run is: everything that decides its answers, kept beside them.

A rerun is the same work only if all of this is the same. What does not decide an answer (decoding
threads, replicas, whether Ray runs them) is not part of it: such runs resume each other.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from rest_deploy.artifact import to_json
from rest_deploy.contracts import Preprocessing, Struct
from rest_deploy.errors import ArtifactError, InputError

T = TypeVar("T", bound=Struct)

Answer = Literal["labels", "embeddings", "labels and embeddings"]
Only = Literal["", "labels", "embeddings"]
"""Of an engine that gives both."""


class Job(Struct, frozen=True):
    """The work of one output.

    sources: as named; list_sha256: of the list file (`embed.entries`). weights_sha256: of their
    values, since those of a large engine are in another file. runs_on: the backend that computes.
    size: (height, width) in pixels. threads: of the engine, 0 for all cores. shard: images of one
    part, a multiple of `batch`. tools: versions that decide pixels, logits or bytes. only: what is
    kept of an engine that gives more.
    """

    schema: Literal[1]
    sources: tuple[str, ...]
    column: str
    id_column: str
    count: int
    list_sha256: str
    engine: str
    engine_sha256: str
    weights_sha256: str
    runs_on: str
    threads: int
    preprocessing: Preprocessing
    size: tuple[int, int]
    answer: Answer
    labels_sha256: str
    top: int
    logits: bool
    batch: int
    shard: int
    tools: dict[str, str]
    only: Only = ""

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard)

    @property
    def key(self) -> str:
        """sha256 over all of it."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()

    @property
    def preprocessing_sha256(self) -> str:
        """Of what is done to an image: the card's values, the size, and the resizing library."""
        parts = (self.preprocessing, self.size, self.tools.get("pillow", ""))
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    @property
    def command(self) -> str:
        """The command that makes these answers, without what does not decide them."""
        words = ["rest-deploy", "embed", *self.sources, "--engine", self.engine]
        height, width = self.size
        words += ["--size", str(height) if height == width else f"{height}x{width}"]
        words += ["--batch", str(self.batch), "--shard", str(self.shard)]
        for option, value in (("--column", self.column), ("--id-column", self.id_column),
                              ("--threads", self.threads)):  # fmt: skip
            words += [option, str(value)] if value else []
        words += ["--only", self.only] if self.only else []
        if self.top:
            words += ["--top", str(self.top), *(["--logits"] if self.logits else [])]
        return shlex.join(words)

    def metadata(self) -> dict[str, str]:
        """What a Parquet file of answers says of itself. Nothing in it tells one machine's run, or
        one time of listing, from another's."""
        return {
            "rest_deploy.engine": self.engine,
            "rest_deploy.engine_sha256": self.engine_sha256,
            "rest_deploy.weights_sha256": self.weights_sha256,
            "rest_deploy.command": self.command,
            "rest_deploy.preprocessing_sha256": self.preprocessing_sha256,
            "rest_deploy.version": self.tools["rest-deploy"],
        }


class Manifest(Struct, frozen=True):
    """Beside a finished part: whose it is and what is in it. Written last.

    images = rows + bad. Hashes: of the two files.
    """

    schema: Literal[1]
    job: str
    shard: int
    images: int
    rows: int
    bad: int
    sha256: str
    bad_sha256: str


class Finished(Struct, frozen=True):
    """Beside a finished output, `OUT.json`: the job, the counts and the hashes of both files.

    sha256: of OUT; empty for a folder of parts, which have manifests of their own.
    """

    schema: Literal[1]
    job: Job
    rows: int
    bad: int
    sha256: str
    bad_sha256: str


def read_struct(path: Path, kind: type[T]) -> T | None:
    """None when there is no such file. Raises `ArtifactError` for a damaged or foreign one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ArtifactError(
            f"{path} is not this version's: {error}", hint="delete the output and run again"
        ) from error


def check_same(found: Job, wanted: Job, place: Path) -> None:
    """Raise `InputError` that names what differs: answers of two jobs are never mixed."""
    if found == wanted:
        return
    differing = [
        f"{name} was {_short(getattr(found, name))}, is {_short(getattr(wanted, name))}"
        for name in Job.__struct_fields__
        if getattr(found, name) != getattr(wanted, name)
    ]
    raise InputError(
        f"{place} belongs to another run: {'; '.join(differing)}",
        hint="finish that one with its own command, choose another -o, or delete it",
    )


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return repr(value)[:80]
