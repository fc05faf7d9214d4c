"""A blob comes back whole and for the same thing, or not at all."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from rest_deploy.engine.compile_cache import DIGEST, KEPT, CompileCache

BLOB = bytes(range(256)) * 8


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache", "model|2026.4|cpu|2|f32")


def test_there_and_back(cache: CompileCache) -> None:
    assert cache.load("dynamic") is None
    cache.save("dynamic", BLOB)
    cache.save("1x3x64x64", BLOB[::-1])
    assert cache.load("dynamic") == BLOB
    assert cache.load("1x3x64x64") == BLOB[::-1]
    cache.save("dynamic", b"newer")
    assert cache.load("dynamic") == b"newer"


@pytest.mark.parametrize("position", [0, DIGEST - 1, DIGEST, 700, -1])
def test_one_changed_byte(
    cache: CompileCache, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.save("dynamic", BLOB)
    path = cache.path("dynamic")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert cache.load("dynamic") is None
    assert "is damaged: compiled anew" in caplog.text


@pytest.mark.parametrize("length", [0, 5, DIGEST, DIGEST + 1, -1])
def test_cut_short(cache: CompileCache, length: int) -> None:
    cache.save("dynamic", BLOB)
    path = cache.path("dynamic")
    path.write_bytes(path.read_bytes()[:length])
    assert cache.load("dynamic") is None


def test_of_something_else(cache: CompileCache) -> None:
    """Of another key or name, even under a name that fits."""
    cache.save("dynamic", BLOB)
    other = CompileCache(cache.folder, "model|2026.5|cpu|2|f32")
    assert other.load("dynamic") is None
    for path in (other.path("dynamic"), cache.path("1x3x64x64")):
        path.write_bytes(cache.path("dynamic").read_bytes())
    assert other.load("dynamic") is None
    assert cache.load("1x3x64x64") is None


def test_two_keys_do_not_take_turns(cache: CompileCache) -> None:
    other = CompileCache(cache.folder, "model|2026.4|cpu|4|f32")
    cache.save("dynamic", BLOB)
    other.save("dynamic", b"other")
    assert (cache.load("dynamic"), other.load("dynamic")) == (BLOB, b"other")


def test_old_ones_go(cache: CompileCache) -> None:
    for index in range(KEPT + 4):
        cache.save(f"{index}x3x64x64", BLOB)
        os.utime(cache.path(f"{index}x3x64x64"), (index, index))
    assert len(list(cache.folder.iterdir())) == KEPT
    assert cache.load("3x3x64x64") is None
    assert cache.load("4x3x64x64") == BLOB


def test_a_folder_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = CompileCache(tmp_path / "file" / "cache", "key")
    with caplog.at_level(logging.WARNING):
        cache.save("dynamic", BLOB)
        assert cache.load("dynamic") is None
    assert "the compile cache is not kept" in caplog.text
