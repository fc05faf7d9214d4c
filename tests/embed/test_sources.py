from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rest_deploy.embed.entries import Entry
from rest_deploy.embed.sources import entries, sorted_names
from rest_deploy.errors import InputError
from tests.embed.conftest import picture

Pictures = Callable[..., Path]


def ids(*sources: object, **options: Any) -> list[str]:
    return [entry.id for entry in entries([str(source) for source in sources], **options)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    table = pyarrow.table(
        {
            "name": ["a", "b", "c"],
            "number": [7, 8, 9],
            "image": [picture(0), picture(1), picture(2)],
            "file": ["x.png", "y.png", "file:///z.png"],
        }
    )
    parquet.write_table(table, path)
    return path


def test_folder_in_one_order_whatever_the_system_says(pictures: Pictures) -> None:
    folder = pictures(6)
    (folder / "0.png").write_bytes(picture(9))
    (folder / "0" / "notes.md").write_text("no image")
    assert ids(folder) == [
        *(f"{folder}/{name}" for name in ("0.png", "0/00000.png", "0/00002.png", "0/00004.png")),
        *(f"{folder}/1/{number:05d}.png" for number in (1, 3, 5)),
    ]


def test_a_link_in_a_circle_ends(pictures: Pictures) -> None:
    folder = pictures(2)
    (folder / "0" / "up").symlink_to(folder, target_is_directory=True)
    assert len(ids(folder)) == 2


def test_another_file_of_the_same_name_has_another_stamp(pictures: Pictures) -> None:
    folder = pictures(1)
    (before,) = entries([str(folder)])
    Path(before.location).write_bytes(picture(1) + b" ")
    (after,) = entries([str(folder)])
    assert before.id == after.id
    assert before.stamp != after.stamp


def test_names_are_sorted_in_files_too() -> None:
    names = [f"{number}\n" for number in range(1000)]
    random.Random(0).shuffle(names)
    assert list(sorted_names(iter(names), most=64)) == sorted(names)


def test_list_is_read_beside_itself(tmp_path: Path, pictures: Pictures) -> None:
    folder = pictures(2)
    path = folder / "list.txt"
    elsewhere = tmp_path / "other.png"
    path.write_text(f"\ufeff0/00000.png\n\n  1/00001.png \n{elsewhere}\nfile:///o.png\n", "utf-8")
    found = list(entries([str(path)]))
    places = [f"{folder}/0/00000.png", f"{folder}/1/00001.png", str(elsewhere), "file:///o.png"]
    assert [entry.id for entry in found] == [
        *("0/00000.png", "1/00001.png", str(elsewhere), "file:///o.png")
    ]
    assert [entry.location for entry in found] == places


def test_parquet_with_bytes(rows: Path) -> None:
    assert ids(rows) == [f"{rows}:{row}" for row in range(3)]
    found = list(entries([str(rows)], id_column="name"))
    assert [(entry.id, entry.place, entry.row) for entry in found] == [
        *(("a", str(rows), 0), ("b", str(rows), 1), ("c", str(rows), 2))
    ]
    assert ids(rows, id_column="number") == ["7", "8", "9"]


def test_parquet_with_paths(rows: Path) -> None:
    found = list(entries([str(rows)], column="file"))
    assert [entry.id for entry in found] == ["x.png", "y.png", "file:///z.png"]
    assert found[0].location == f"{rows.parent}/x.png"
    assert found[2] == Entry("file:///z.png", "file:///z.png")
    assert ids(rows, column="file", id_column="name") == ["a", "b", "c"]


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    images = [{"bytes": picture(0), "path": "a.png"}, {"bytes": picture(1), "path": "b.png"}]
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 1]}), path)
    assert ids(path) == [f"{path}:0", f"{path}:1"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"column": "number"}, "no column 'number' of bytes or paths"),
        ({"column": "imag"}, "image (binary)"),
        ({"id_column": "nome"}, "no column 'nome'; its columns: name"),
        ({"id_column": "image"}, "expected text or integers"),
    ],
)
def test_parquet_columns_that_do_not_fit(rows: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        ids(rows, **options)
    assert words in str(caught.value)


def test_parquet_where_the_column_is_not_clear(tmp_path: Path) -> None:
    path = tmp_path / "two.parquet"
    parquet.write_table(pyarrow.table({"a": [b"1"], "b": [b"2"]}), path)
    with pytest.raises(InputError, match="2 columns of bytes; its columns: a, b"):
        ids(path)


def test_parquet_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "null.parquet"
    parquet.write_table(pyarrow.table({"id": ["a", None], "image": [b"1", b"2"]}), path)
    with pytest.raises(InputError, match=r"row 1 of .* has no 'id'"):
        ids(path, id_column="id")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "is not there; expected a folder"),
        ("notes.md", "is neither a folder"),
        ("empty", "no images below"),
        ("empty.txt", "names no image"),
        ("latin.txt", "line 2 of .* is not UTF-8"),
        ("broken.parquet", "not a readable Parquet file"),
        ("nowhere.parquet", "no such file"),
        ("strange.txt", "no way to read nonsense://"),
        ("memory://nowhere-at-all", "cannot list|no images below"),
    ],
)
def test_sources_that_are_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"a.png\n\xe9.png\n")
    (tmp_path / "strange.txt").write_bytes(b"nonsense://a.png\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=words):
        ids(name if "://" in name else tmp_path / name)


def test_column_is_for_parquet_only(pictures: Pictures) -> None:
    with pytest.raises(InputError, match="--column is for Parquet"):
        ids(pictures(1), column="image")


def test_uri_of_a_folder(pictures: Pictures) -> None:
    folder = pictures(4)
    assert ids(f"file://{folder}") == [f"file://{name}" for name in ids(folder)]


def test_uri_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("b.png", "a.png", "notes.md"):
        memory.pipe(f"/bucket/{name}", picture(0))
    memory.pipe("/bucket/list.txt", b"a.png\n")
    assert [entry.location for entry in entries(["memory://bucket/list.txt"])] == [
        "memory://bucket/a.png"
    ]
    assert ids("memory://bucket") == ["memory://bucket/a.png", "memory://bucket/b.png"]
