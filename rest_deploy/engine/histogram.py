"""A service's log, counted: how many requests of which size and batch."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

from rest_deploy.contracts import SMALLEST_SIDE
from rest_deploy.engine.planner import Expected
from rest_deploy.engine.profiles import LARGEST_BATCH
from rest_deploy.errors import InputError

NEEDED = ("height", "width")
OPTIONAL = ("batch", "count")

LARGEST_BYTES = 16 << 20
LARGEST_SHAPES = 10_000
"""Different ones. The planner compares each with each."""

BOUNDS = {
    "height": (SMALLEST_SIDE, 99_999),
    "width": (SMALLEST_SIDE, 99_999),
    "batch": (1, 99_999),
    "count": (1, 10**12),
}
"""Least and most of each column."""

EXAMPLE = "height,width,batch,count"


def read_histogram(path: Path, batches: tuple[int, int] | None) -> tuple[Expected, ...]:
    """A CSV with a header: height and width in pixels, batch, count of requests (without: 1 a row).

    Rows of the same shape are added up. batches: least and most of each size, for a file without a
    batch column; None: 1 to 32. With that column a size comes in the batches it came in, and in
    smaller ones: the last of a queue is seldom full. Raises `InputError` with the line.
    """
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        _check_header(path, header)
        if "batch" in header and batches is not None:
            raise InputError(
                f"{path} has a batch column, --expect-batches says it again: one of the two"
            )
        if "batch" not in header:
            batches = batches or (1, LARGEST_BATCH)
        counts: dict[tuple[int, int, int], int] = {}
        for row in rows:
            if not row:  # an empty line
                continue
            found = _values(path, rows.line_num, header, row)
            shape = (found["height"], found["width"], found.get("batch", 0))
            counts[shape] = counts.get(shape, 0) + found.get("count", 1)
            if len(counts) > LARGEST_SHAPES:
                raise _wrong(
                    path, rows.line_num, f"more than {LARGEST_SHAPES} different shapes",
                    hint="round sizes up, as to multiples of 32",
                )  # fmt: skip
    except csv.Error as error:
        raise _wrong(path, rows.line_num, f"not CSV: {error}") from error
    if not counts:
        raise InputError(f"{path}: no row below the header on line 1; expected one a shape")
    return tuple(
        _expected(height, width, batch, batches, count)
        for (height, width, batch), count in sorted(counts.items())
    )


def _expected(
    height: int, width: int, batch: int, batches: tuple[int, int] | None, count: int
) -> Expected:
    if batches is None:
        return Expected(height, width, 1, batch, batch, count)
    least, most = batches
    return Expected(height, width, least, round(math.sqrt(least * most)), most, count)


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file; expected a CSV with {EXAMPLE}")
        with path.open("rb") as stream:
            data = stream.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > LARGEST_BYTES:
        raise InputError(
            f"{path} has more than {LARGEST_BYTES >> 20} MiB",
            hint="count equal shapes: one row each, with a count",
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _wrong(path, 1, "is UTF-16; expected UTF-8", hint="save it as CSV UTF-8")
    try:
        return data.decode("utf-8-sig")  # Excel writes a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong(path, line, f"not UTF-8: {error.reason}") from error


def _check_header(path: Path, header: list[str]) -> None:
    known = {*NEEDED, *OPTIONAL}
    if set(header) <= known and set(NEEDED) <= set(header) and len(set(header)) == len(header):
        return
    shown = ",".join(header)[:80]
    raise _wrong(
        path, 1, f"the header is {shown!r}; expected height,width and optionally batch, count"
    )  # fmt: skip


def _values(path: Path, line: int, header: list[str], row: list[str]) -> dict[str, int]:
    if len(row) != len(header):
        raise _wrong(path, line, f"{len(row)} values; expected {len(header)}: {','.join(header)}")
    found: dict[str, int] = {}
    for name, text in zip(header, row, strict=True):
        least, most = BOUNDS[name]
        value = int(text) if re.fullmatch(r" *[0-9]{1,13} *", text) else -1
        if not least <= value <= most:
            raise _wrong(
                path, line,
                f"{name} is {text[:40]!r}; expected a whole number from {least} to {most}",
            )  # fmt: skip
        found[name] = value
    return found


def _wrong(path: Path, line: int, what: str, *, hint: str | None = None) -> InputError:
    return InputError(f"{path}, line {line}: {what}", hint=hint)
