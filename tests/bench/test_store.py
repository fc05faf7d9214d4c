from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from rest_deploy.artifact import TEMPORARY_PREFIX
from rest_deploy.bench import store
from rest_deploy.errors import ArtifactError, InvariantError
from tests.bench.records import engine, measurement, record


def test_there_and_back(tmp_path: Path) -> None:
    written = record(engine("a", measurement(10)), engine("b", failed="<script>\n"))
    path = store.write(written, tmp_path / "results")
    assert store.read(path) == written
    assert path.name.startswith("bench-20261125T171203-")
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_never_replaced(tmp_path: Path) -> None:
    """Two runs of one second have two names; the same one twice has one and stays as it is."""
    first = store.write(record(engine("a", measurement(10))), tmp_path)
    second = store.write(record(engine("a", measurement(11))), tmp_path)
    assert first != second
    before = first.stat().st_mtime_ns
    assert store.write(record(engine("a", measurement(10))), tmp_path) == first
    assert first.stat().st_mtime_ns == before
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_does_not_have(tmp_path: Path, value: float) -> None:
    bad = replace(measurement(10), noise=value)
    with pytest.raises(InvariantError, match="cannot be stored"):
        store.write(record(engine("a", bad)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_would_be_read_as_another(tmp_path: Path) -> None:
    with pytest.raises(InvariantError, match="read as another one"):
        store.write(record(engine("a", measurement(10)), notes=["a list"]), tmp_path)


def changed(tmp_path: Path, **fields: Any) -> Path:
    path = store.write(record(engine("a", measurement(10))), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema": 2}, "has schema 2; this version reads schema 1"),
        ({"schema": "1"}, "has schema '1'"),
        ({"surprise": 1}, "surprise"),
        ({"engines": [{"label": 3}]}, r"\$.engines\[0\].label"),
        ({"environment": None}, r"\$.environment"),
    ],
)
def test_unknown_ones_are_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        store.read(changed(tmp_path, **fields))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no JSON"), (b'{"schema": 1', "cut off"), (b"\xff", "no JSON"), (b"[]", "no record"),
     (b"{}", "no record"), (b"null", "no record")],
)  # fmt: skip
def test_what_is_no_record(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        store.read(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read the record .*gone\.json: No such file"):
        store.read(tmp_path / "gone.json")
