"""Files and objects by path or URI: bytes of one, the listing below one, Parquet rows.

pyarrow knows file, s3, gs and hdfs; fsspec, where it is installed, all others (az, http, memory).
"""

from __future__ import annotations

import functools
import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rest_deploy.errors import ImageError, InputError, MissingDependencyError, installed

if TYPE_CHECKING:
    import pyarrow.fs
    import pyarrow.parquet

MOST_BYTES = 256 * 2**20
"""Of one image file: larger ones are refused unread, so that memory stays bounded."""

ATTEMPTS = 3
"""At an object behind a URI: a network fails now and then."""

PYARROW_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "hdfs", "viewfs"})


def is_uri(text: str) -> bool:
    """Whether it has a scheme. One letter before the colon is a drive."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def read(place: str) -> bytes:
    """All bytes of a file or object. Raises `ImageError` when it cannot be read or is too large."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with open_input(place) as stream:
                content = stream.read(MOST_BYTES + 1)
        except (FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
            raise ImageError(f"cannot be read: {error.strerror or 'no such object'}") from error
        except (OSError, InputError) as error:
            if attempt == ATTEMPTS or not is_uri(place) or place.startswith("file:"):
                why = getattr(error, "strerror", None) or error
                raise ImageError(f"cannot be read: {why}") from error
            time.sleep(0.1 * 4**attempt)
        else:
            if len(content) > MOST_BYTES:
                raise ImageError(f"larger than {MOST_BYTES // 2**20} MB")
            return content
    raise AssertionError  # the loop returns or raises


@contextmanager
def open_input(place: str) -> Iterator[IO[bytes]]:
    """A stream of bytes. Raises `OSError`, `InputError` for a scheme that nobody knows."""
    if not is_uri(place):
        with Path(place).open("rb") as stream:
            yield stream
        return
    files, path = _files(place)
    with files.open_input_stream(path) as stream:
        yield io.BufferedReader(stream)  # pyarrow's own streams do not read lines


@contextmanager
def open_parquet(place: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Raises `InputError` when it is not there or no Parquet."""
    import pyarrow
    from pyarrow import parquet

    try:
        if is_uri(place):
            files, path = _files(place)
            source: Any = files.open_input_file(path)
        else:
            source = pyarrow.OSFile(place)
        with source:
            # Without read-ahead of whole columns: a row group of photos may be gigabytes.
            yield parquet.ParquetFile(source, pre_buffer=False, buffer_size=2**20)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {place}") from error
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{place} is not a readable Parquet file: {error}") from error


def listing(place: str) -> Iterator[tuple[str, str]]:
    """(URI, stamp) of every object below a URI, in no order. Raises `InputError`."""
    import pyarrow
    from pyarrow import fs

    files, path = _files(place)
    scheme = place.partition("://")[0]
    try:
        found = files.get_file_info(fs.FileSelector(path, recursive=True))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot list {place}: {error}") from error
    for info in found:
        if info.type == fs.FileType.File:
            separator = "" if info.path.startswith("/") and scheme != "file" else "/"
            name = info.path.lstrip("/") if scheme == "file" else info.path
            prefix = "file://" if scheme == "file" else f"{scheme}:/"
            yield f"{prefix}{separator}{name}", f"{info.size}:{info.mtime_ns}"


def stamp(place: str) -> str:
    """Size and time of change of a local file, "" where there is none or behind a URI."""
    if is_uri(place):
        return ""
    try:
        found = os.stat(place)  # noqa: PTH116  # once an image
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}"


def beside(source: str, name: str) -> str:
    """What `name`, written in `source`, means: relative to the folder that `source` is in."""
    if is_uri(source):
        return name if name.startswith("/") else f"{source.rpartition('/')[0]}/{name}"
    folder = os.path.dirname(source)  # noqa: PTH120  # a hot loop
    return os.path.join(folder, name)  # noqa: PTH118  # likewise


def check_uri(place: str) -> None:
    """Raise unless something here reads such URIs: before the work, not in its midst.

    Raises `InputError`, `MissingDependencyError`.
    """
    scheme = place.partition("://")[0].lower()
    if scheme not in PYARROW_SCHEMES:
        _through_fsspec(scheme)


def _files(place: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system behind a URI, kept open, and the path in it."""
    scheme, _, rest = place.partition("://")
    scheme = scheme.lower()
    if scheme not in PYARROW_SCHEMES:
        return _through_fsspec(scheme), rest
    host, _, path = rest.partition("/")
    # The bucket is part of the path; the host of file and hdfs is not.
    return _known(scheme, host), rest if scheme in ("s3", "gs", "gcs") else f"/{path}"


@functools.cache
def _known(scheme: str, host: str) -> pyarrow.fs.FileSystem:
    import pyarrow
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(f"{scheme}://{host}/")[0]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot open {scheme}://{host}: {error}") from error


@functools.cache
def _through_fsspec(scheme: str) -> pyarrow.fs.FileSystem:
    if not installed("fsspec"):
        raise MissingDependencyError(
            f"{scheme}:// needs the Python package 'fsspec', which is not installed",
            hint="pip install fsspec, and its package for that store",
        )
    import fsspec
    from pyarrow import fs

    try:
        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ValueError, ImportError) as error:
        raise InputError(f"no way to read {scheme}://: {error}") from error
