"""The parts of an output on disk: each there with its manifest or not at all, and their merger.

    OUT.parquet.parts/                 or, with --parts, OUT/
      _job.json                        whose parts these are
      _list                            the images, one a line
      part-000000.parquet              answers of shard 0; its manifest is written last
      _bad/part-000000.parquet         images of shard 0 without one
      _manifests/part-000000.json

Names with an underscore are not data to readers of Parquet folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rest_deploy.artifact import (
    TEMPORARY_PREFIX,
    output_error,
    sha256_file,
    staging,
    to_json,
    write_text,
)
from rest_deploy.embed.answers import Form, bad_schema
from rest_deploy.embed.job import Finished, Job, Manifest, check_same, read_struct
from rest_deploy.errors import InputError, InvariantError, MissingDependencyError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

ROW_GROUP = 16_384
"""Rows of one row group of a merged file, whatever the shards: 33 MB of 512 floats each."""

COMPRESSION = "zstd"

_LOCK, _SCRATCH = "_lock", "_scratch"


@dataclass(frozen=True)
class Layout:
    """Where the files of an output are. `folder`: of its parts, the output itself with --parts."""

    output: Path
    keep_parts: bool = False

    @property
    def folder(self) -> Path:
        name = self.output.name
        return self.output if self.keep_parts else self.output.with_name(f"{name}.parts")

    @property
    def bad(self) -> Path:
        return self.output.with_name(f"{self.output.name.removesuffix('.parquet')}.bad.parquet")

    @property
    def finished(self) -> Path:
        return self.output.with_name(f"{self.output.name}.json")

    @property
    def job(self) -> Path:
        return self.folder / "_job.json"

    @property
    def list(self) -> Path:
        return self.folder / "_list"

    def part(self, shard: int) -> Path:
        return self.folder / f"part-{shard:06d}.parquet"

    def bad_part(self, shard: int) -> Path:
        return self.folder / "_bad" / f"part-{shard:06d}.parquet"

    def manifest(self, shard: int) -> Path:
        return self.folder / "_manifests" / f"part-{shard:06d}.json"


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """One run at a time works on an output; the lock goes with the process, however it ends.

    A run that ends before it has claimed the folder leaves none. Raises `InputError` when another
    run has it, or it holds other things than parts.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise MissingDependencyError("embed needs file locks of a POSIX system") from error
    folder = layout.folder
    try:
        if folder.is_dir() and not layout.job.is_file():
            # A run that was killed before it had claimed the folder leaves these.
            foreign = sorted(
                path.name for path in folder.iterdir()
                if path.name not in (_LOCK, _SCRATCH)
                and not path.name.startswith(TEMPORARY_PREFIX)
            )  # fmt: skip
            if foreign:
                raise InputError(
                    f"{folder} is there already, and {foreign[0]} in it is not of a bulk run",
                    hint="choose another -o",
                )
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / _LOCK).open("w")
    except OSError as error:
        raise output_error(folder, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that has just ended has taken the file away that this one opened.
            alone = os.path.samestat(os.fstat(stream.fileno()), (folder / _LOCK).stat())
        except OSError as error:
            raise InputError(f"another run is writing {layout.output}") from error
        if not alone:
            raise InputError(f"another run has just written {layout.output}", hint="again")
        try:
            yield
        finally:
            shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
            if folder.is_dir() and not layout.job.is_file():
                (folder / _LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it holds something else by now
                    folder.rmdir()


@contextlib.contextmanager
def scratch(layout: Layout) -> Iterator[Path]:
    """An empty folder for the list, until it is claimed. The lock is held."""
    folder = layout.folder / _SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder


def claim(layout: Layout, job: Job) -> None:
    """Make the folder of parts this job's, and the list in `scratch` its list.

    Raises `InputError` when it is another's.
    """
    found = read_struct(layout.job, Job)
    if found is not None:
        check_same(found, job, layout.folder)
    write_text(layout.job, to_json(job))
    folder = layout.folder / _SCRATCH
    (folder / layout.list.name).replace(layout.list)
    shutil.rmtree(folder)


def clear(layout: Layout) -> None:
    """Take away what a finished output needs no more; last what says whose it is, so that a rerun
    knows the rest of it."""
    if layout.keep_parts:
        return
    for path in layout.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in (layout.job, layout.folder / _LOCK):
            path.unlink()
    layout.job.unlink(missing_ok=True)
    (layout.folder / _LOCK).unlink(missing_ok=True)
    layout.folder.rmdir()


def write_part(layout: Layout, job: Job, form: Form, shard: int, answers: Answers) -> Manifest:
    """Write both files of a shard, then its manifest, each under its name when it is complete."""
    with staging(layout.folder) as folder:
        good, bad = folder / "good.parquet", folder / "bad.parquet"
        rows = _write(good, form.schema(), job, answers.batches)
        refused = _write(bad, bad_schema(), job, [_bad_batch(answers.bad)])
        manifest = Manifest(
            schema=1, job=job.key, shard=shard, images=rows + refused, rows=rows, bad=refused,
            sha256=sha256_file(good), bad_sha256=sha256_file(bad),
        )  # fmt: skip
        staged = folder / "manifest.json"
        staged.write_text(to_json(manifest), encoding="utf-8")
        for path, target in (
            (good, layout.part(shard)), (bad, layout.bad_part(shard)),
            (staged, layout.manifest(shard)),
        ):  # fmt: skip
            _flush(path)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        _flush(layout.manifest(shard).parent)
    return manifest


@dataclass(frozen=True)
class Answers:
    """Of one shard: batches of rows, and (id, reason) of the images without an answer."""

    batches: list[pyarrow.RecordBatch]
    bad: list[tuple[str, str]]


def finished_parts(layout: Layout, job: Job) -> dict[int, Manifest]:
    """Shards whose files are those of their manifest; others' files are there by halves."""
    found = {}
    for shard in range(job.shards):
        manifest = read_struct(layout.manifest(shard), Manifest)
        if manifest is None or manifest.job != job.key:
            continue
        paths = (layout.part(shard), layout.bad_part(shard))
        hashes = (manifest.sha256, manifest.bad_sha256)
        if all(path.is_file() for path in paths) and hashes == tuple(map(sha256_file, paths)):
            found[shard] = manifest
    return found


def merge(layout: Layout, job: Job, form: Form, manifests: dict[int, Manifest]) -> Finished:
    """One file of all answers and one of all bad images, in the order of the list; then `OUT.json`,
    and the parts go. Raises `InvariantError` unless every image of the list is in it once."""
    counted = sum(manifest.images for manifest in manifests.values())
    if len(manifests) != job.shards or counted != job.count:
        raise InvariantError(
            f"{len(manifests)} parts hold {counted} images; expected {job.shards} and {job.count}"
        )
    shards = range(job.shards)
    with staging(layout.output.parent) as folder:
        bad = folder / "bad.parquet"
        refused = _merged(bad, bad_schema(), job, [layout.bad_part(shard) for shard in shards])
        _flush(bad)
        rows = sum(manifest.rows for manifest in manifests.values())
        sha256, good = "", folder / "good.parquet"
        if not layout.keep_parts:
            rows = _merged(good, form.schema(), job, [layout.part(shard) for shard in shards])
            _flush(good)
            sha256 = sha256_file(good)
        if rows + refused != job.count:
            raise InvariantError(f"{rows} answers and {refused} bad images; expected {job.count}")
        if not layout.keep_parts:
            os.replace(good, layout.output)  # noqa: PTH105
        finished = Finished(schema=1, job=job, rows=rows, bad=refused, sha256=sha256,
                            bad_sha256=sha256_file(bad))  # fmt: skip
        os.replace(bad, layout.bad)  # noqa: PTH105
    write_text(layout.finished, to_json(finished))
    clear(layout)
    return finished


def finished_output(layout: Layout, job: Job) -> Finished | None:
    """The finished output of this very job, None when there is none.

    Raises `InputError` when there is one of another job, or files that no run has finished.
    """
    found = read_struct(layout.finished, Finished)
    if found is None:
        if layout.output.is_file() and not layout.job.is_file():
            raise InputError(
                f"{layout.output} is there already, and no {layout.finished.name} says what it is",
                hint="choose another -o, or delete it",
            )
        return None
    check_same(found.job, job, layout.output)
    if layout.keep_parts:
        return found if len(finished_parts(layout, job)) == job.shards else None
    whole = layout.output.is_file() and sha256_file(layout.output) == found.sha256
    return found if whole and layout.bad.is_file() else None


def _write(path: Path, schema: pyarrow.Schema, job: Job, batches: list[pyarrow.RecordBatch]) -> int:
    with _writer(path, schema, job) as writer:
        import pyarrow

        table = pyarrow.Table.from_batches(batches, schema=schema)
        if table.num_rows:
            writer.write_table(table, row_group_size=table.num_rows)
    return int(table.num_rows)


def _merged(path: Path, schema: pyarrow.Schema, job: Job, parts: list[Path]) -> int:
    """Row groups of one size, whatever the sizes of the parts: at most one of them in memory."""
    import pyarrow
    from pyarrow import parquet

    held: list[pyarrow.Table] = []
    waiting = written = 0
    with _writer(path, schema, job) as writer:
        for part in parts:
            # Not `read_table`, which makes columns of folders that are named like `day=1`.
            table = parquet.ParquetFile(part).read().cast(schema)
            held.append(table)
            waiting += table.num_rows
            while waiting >= ROW_GROUP:
                whole = pyarrow.concat_tables(held)
                writer.write_table(whole.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
                held, waiting = [whole.slice(ROW_GROUP)], waiting - ROW_GROUP
                written += ROW_GROUP
        if waiting:
            writer.write_table(pyarrow.concat_tables(held), row_group_size=waiting)
    return written + waiting


def _writer(path: Path, schema: pyarrow.Schema, job: Job) -> pyarrow.parquet.ParquetWriter:
    from pyarrow import parquet

    return parquet.ParquetWriter(
        path, schema.with_metadata(job.metadata()), compression=COMPRESSION
    )


def _bad_batch(bad: list[tuple[str, str]]) -> pyarrow.RecordBatch:
    import pyarrow

    columns = [[name for name, _ in bad], [reason for _, reason in bad]]
    arrays = [pyarrow.array(column, pyarrow.string()) for column in columns]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=bad_schema())


def _flush(path: Path) -> None:
    """To the disk: a name must not outlive a power cut without its contents."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
