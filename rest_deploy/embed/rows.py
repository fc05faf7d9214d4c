"""Images inside Parquet files, read in the order of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from rest_deploy.embed import storage
from rest_deploy.embed.sources import payload_column

READ_AHEAD = 16
"""Rows decoded at a time: images are large."""


class RowReader:
    """Bytes of rows that are asked for in rising order: one pass over each file.

    Going back, or to another file, costs the decoding of the row group up to that row. Not
    thread-safe.
    """

    def __init__(self, column: str | None = None) -> None:
        """column: with the images; None for the only one with bytes."""
        self._column = column
        self._place = ""
        self._next = 0
        self._rows: Iterator[bytes | None] = iter(())
        self._open = ExitStack()

    def read(self, place: str, row: int) -> bytes | None:
        """Bytes in that row, None where there are none. Raises `InputError` for a file that is
        another by now."""
        if place != self._place or row < self._next:
            self.close()
            self._place = place
            self._rows = self._start(place, row)
        while self._next < row:
            next(self._rows, None)
            self._next += 1
        self._next += 1
        return next(self._rows, None)

    def close(self) -> None:
        self._open.close()
        self._place = ""

    def _start(self, place: str, row: int) -> Iterator[bytes | None]:
        """From the row group that holds `row` on."""
        file = self._open.enter_context(storage.open_parquet(place))
        column = payload_column(file, place, self._column)
        group, begin = 0, 0
        while group < file.metadata.num_row_groups:
            end = begin + file.metadata.row_group(group).num_rows
            if row < end:
                break
            group, begin = group + 1, end
        self._next = begin
        groups = list(range(group, file.metadata.num_row_groups))
        batches = file.iter_batches(batch_size=READ_AHEAD, row_groups=groups, columns=[column])
        for_each = (value for batch in batches for value in batch.column(0))
        return (_bytes(value.as_py()) for value in for_each)


def _bytes(value: object) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None
