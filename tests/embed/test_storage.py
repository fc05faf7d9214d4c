from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rest_deploy.embed import storage
from rest_deploy.errors import ImageError


def test_reads_paths_and_uris(tmp_path: Path) -> None:
    path = tmp_path / "with space.png"
    path.write_bytes(b"content")
    assert storage.read(str(path)) == b"content"
    assert storage.read(f"file://{path}") == b"content"


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_what_cannot_be_read_is_a_bad_image(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        storage.read(f"{prefix}{tmp_path}/nowhere.png")
    with pytest.raises(ImageError, match="cannot be read"):
        storage.read(f"{prefix}{tmp_path}")


def test_a_huge_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(bytes(2 * 2**20 + 1))
    monkeypatch.setattr(storage, "MOST_BYTES", 2 * 2**20 + 1)
    assert len(storage.read(str(path))) == 2 * 2**20 + 1
    monkeypatch.setattr(storage, "MOST_BYTES", 2 * 2**20)
    with pytest.raises(ImageError, match="larger than 2 MB"):
        storage.read(str(path))


@pytest.mark.parametrize(("failures", "read"), [(1, True), (2, True), (3, False)])
def test_a_store_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, read: bool
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    left, opened = [failures], storage.open_input

    @contextmanager
    def sometimes(place: str) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError("connection reset")
        with opened(place.removeprefix("s3://")) as stream:
            yield stream

    monkeypatch.setattr(storage, "open_input", sometimes)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    if read:
        assert storage.read(f"s3://{path}") == b"content"
    else:
        with pytest.raises(ImageError, match="connection reset"):
            storage.read(f"s3://{path}")


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("/lists/a.txt", "x/y.png", "/lists/x/y.png"),
        ("/lists/a.txt", "/abs/y.png", "/abs/y.png"),
        ("a.txt", "y.png", "y.png"),
        ("s3://bucket/lists/a.txt", "y.png", "s3://bucket/lists/y.png"),
    ],
)
def test_beside(source: str, name: str, expected: str) -> None:
    assert storage.beside(source, name) == expected


def test_a_drive_is_no_scheme() -> None:
    assert [storage.is_uri(text) for text in ("c://x", "s3://x", "a/b://c")] == [False, True, False]
