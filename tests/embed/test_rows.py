from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rest_deploy.embed import storage
from rest_deploy.embed.rows import RowReader


@pytest.fixture
def path(tmp_path: Path) -> str:
    found = tmp_path / "rows.parquet"
    values = [b"%d" % row if row != 13 else None for row in range(100)]
    parquet.write_table(pyarrow.table({"image": values}), found, row_group_size=32)
    return str(found)


def value(row: int) -> bytes | None:
    return b"%d" % row if row != 13 else None


@pytest.mark.parametrize(
    "asked", [range(100), (40, 41, 99), (99, 0, 50, 49), (31, 32, 33), (13, 12, 14), (5, 5)]
)
def test_rows_in_any_order(path: str, asked: tuple[int, ...]) -> None:
    reader = RowReader()
    assert [reader.read(path, row) for row in asked] == [value(row) for row in asked]
    reader.close()


def test_rising_rows_open_the_file_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = storage.open_parquet

    def counted(place: str) -> Any:
        opened.append(place)
        return original(place)

    monkeypatch.setattr(storage, "open_parquet", counted)
    reader = RowReader("image")
    for row in (0, 1, 2, 50, 98):
        assert reader.read(path, row) == value(row)
    assert opened == [path]
    reader.read(path, 3)
    assert opened == [path, path]


def test_bytes_in_a_struct(tmp_path: Path) -> None:
    path = tmp_path / "struct.parquet"
    images = [{"bytes": b"a", "path": None}, None, {"bytes": None, "path": "x"}]
    parquet.write_table(pyarrow.table({"image": images}), path)
    reader = RowReader()
    assert [reader.read(str(path), row) for row in range(3)] == [b"a", None, None]
    assert reader.read(str(path), 3) is None
