"""SOURCE on the command line -> entries in an order that is the same every time.

A folder (recursive), a text file with a path or URI a line, a Parquet file with a column of bytes
or paths, an image; each on this machine or behind a URI.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rest_deploy.embed import storage
from rest_deploy.embed.entries import Entry
from rest_deploy.errors import InputError
from rest_deploy.preprocess import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
SPILL = 100_000
"""Names of one folder sorted in memory; more of them are sorted in files."""


def entries(
    sources: Sequence[str], column: str | None = None, id_column: str | None = None
) -> Iterator[Entry]:
    """All images of all sources, in the order of the command line.

    Ids: the path below a folder with the folder before it, the line of a list file, of Parquet the
    value of `id_column`, else the path in `column`, else "FILE:ROW". Relative lines of a list file
    are read beside it. Raises `InputError` for a source that is not there or not of these kinds.
    """
    for source in sources:
        suffix = Path(source).suffix.lower()
        if suffix == ".parquet":
            yield from _parquet(source, column, id_column)
        elif column or id_column:
            option = "--column" if column else "--id-column"
            raise InputError(f"{option} is for Parquet; {source} is not named .parquet")
        elif suffix in LIST_SUFFIXES:
            yield from _lines(source)
        elif suffix in IMAGE_SUFFIXES and not Path(source).is_dir():
            yield Entry(source, stamp=storage.stamp(source))
        elif storage.is_uri(source):
            yield from _listing(source)
        elif Path(source).is_dir():
            yield from _folder(source)
        else:
            there = "is neither" if Path(source).exists() else "is not there; expected"
            raise InputError(
                f"{source} {there} a folder, an image, a .parquet file or a list of paths "
                f"({', '.join(sorted(LIST_SUFFIXES))})"
            )


def payload_column(file: pyarrow.parquet.ParquetFile, source: str, column: str | None) -> str:
    """The column with the images: the named one, else the only one with bytes in it.

    Raises `InputError` when that is not clear, or the column holds neither bytes nor text.
    """
    schema = file.schema_arrow
    if column is None:
        found = [field.name for field in schema if kind_of(field.type) == "bytes"]
        if len(found) != 1:
            raise InputError(
                f"{source} has {len(found)} columns of bytes; its columns: "
                f"{', '.join(schema.names)}",
                hint="--column NAME, of bytes or of paths",
            )
        return str(found[0])
    if column not in schema.names or kind_of(schema.field(column).type) is None:
        raise InputError(
            f"{source} has no column {column!r} of bytes or paths; its columns: "
            + ", ".join(f"{field.name} ({field.type})" for field in schema)
        )
    return column


def kind_of(found: pyarrow.DataType) -> str | None:
    """ "bytes", "paths", or None. A struct with bytes in it is what Hugging Face writes."""
    from pyarrow import types

    if types.is_struct(found):
        names = [found.field(index).name for index in range(found.num_fields)]
        return "bytes" if "bytes" in names and kind_of(found.field("bytes").type) else None
    if types.is_binary(found) or types.is_large_binary(found) or types.is_fixed_size_binary(found):
        return "bytes"
    return "paths" if types.is_string(found) or types.is_large_string(found) else None


def sorted_names(names: Iterator[str], most: int = SPILL) -> Iterator[str]:
    """In order of code points; at most about `most` of them in memory, the others in files."""
    with ExitStack() as stack:
        runs: list[Iterator[str]] = []
        held: list[str] = []
        for name in names:
            held.append(name)
            if len(held) >= most:
                runs.append(_spilled(sorted(held), stack))
                held = []
        yield from heapq.merge(sorted(held), *runs)


def _spilled(names: list[str], stack: ExitStack) -> Iterator[str]:
    temporary = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115  # the stack closes it
    stream = stack.enter_context(temporary)
    stream.writelines(json.dumps(name) + "\n" for name in names)  # a name may hold a line break
    stream.seek(0)
    return (json.loads(line) for line in stream)


def _folder(source: str) -> Iterator[Entry]:
    """Images below a folder; links to folders are not followed, so that the walk ends."""
    empty = True
    for path in _walk(source):
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            empty = False
            yield Entry(path, stamp=storage.stamp(path))
    if empty:
        raise InputError(
            f"no images below {source}",
            hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}; name Parquet and list files",
        )


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        # A folder sorts as if its name ended in the separator: where its contents belong.
        names = (
            entry.name + "/" * entry.is_dir(follow_symlinks=False)
            for entry in found
            if entry.is_file() or entry.is_dir(follow_symlinks=False)
        )
        ordered = sorted_names(names)
        for name in ordered:
            path = os.path.join(folder, name.removesuffix("/"))  # noqa: PTH118  # a hot loop
            if name.endswith("/"):
                yield from _walk(path)
            else:
                yield path


def _listing(source: str) -> Iterator[Entry]:
    """Images below a URI. The store's own listing is in memory while it is sorted."""
    found = [one for one in storage.listing(source) if _is_image(one[0])]
    if not found:
        raise InputError(f"no images below {source}")
    for place, stamp in sorted(found):
        yield Entry(place, stamp=stamp)


def _is_image(place: str) -> bool:
    return Path(place).suffix.lower() in IMAGE_SUFFIXES


def _lines(source: str) -> Iterator[Entry]:
    empty = True
    with storage.open_input(source) as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise InputError(f"line {number} of {source} is not UTF-8") from error
            if text:
                empty = False
                yield _named(text, source)
    if empty:
        raise InputError(f"{source} names no image")


def _named(text: str, source: str) -> Entry:
    """An entry of a list file or a column: relative paths are meant beside it."""
    if storage.is_uri(text):
        storage.check_uri(text)
        return Entry(text)
    place = storage.beside(source, text)
    return Entry(text, "" if place == text else place, stamp=storage.stamp(place))


def _parquet(source: str, column: str | None, id_column: str | None) -> Iterator[Entry]:
    import pyarrow
    from pyarrow import types

    with storage.open_parquet(source) as file:
        payload = payload_column(file, source, column)
        paths = kind_of(file.schema_arrow.field(payload).type) == "paths"
        names = file.schema_arrow.names
        if id_column is not None:
            if id_column not in names:
                raise InputError(
                    f"{source} has no column {id_column!r}; its columns: {', '.join(names)}"
                )
            found = file.schema_arrow.field(id_column).type
            if not (types.is_string(found) or types.is_large_string(found)
                    or types.is_integer(found)):  # fmt: skip
                raise InputError(f"column {id_column!r} of {source} has the type {found}; "
                                 "expected text or integers")  # fmt: skip
        wanted = [name for name in dict.fromkeys((id_column, payload if paths else None)) if name]
        stamp = storage.stamp(source)
        if not wanted:
            for row in range(file.metadata.num_rows):
                yield Entry(f"{source}:{row}", source, row, stamp)
            return
        row = -1
        for batch in file.iter_batches(batch_size=8192, columns=wanted):
            columns = [batch.column(name).cast(pyarrow.string()).to_pylist() for name in wanted]
            for values in zip(*columns, strict=True):
                row += 1
                if values[0] is None:
                    raise InputError(f"row {row} of {source} has no {wanted[0]!r}")
                if not paths:
                    yield Entry(values[0], source, row, stamp)
                elif values[-1] is None:
                    raise InputError(f"row {row} of {source} has no {payload!r}")
                else:
                    named = _named(values[-1], source)
                    yield named._replace(id=values[0], place=named.location)
