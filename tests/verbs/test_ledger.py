from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.verbs.ledger import Ledger, key_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rest_nano.onnx"
    path.write_bytes(b"model")
    return path


def test_a_step_is_done_once(file: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deploy.json")
    assert ledger.done("export", "k") is None
    ledger.record("export", "k", file)
    assert ledger.done("export", "k") == file
    again = Ledger(tmp_path / "deploy.json")
    assert again.done("export", "k") == file
    assert again.done("export", "other key") is None
    assert again.done("build", "k") is None


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_file_that_is_not_what_was_written(file: Path, tmp_path: Path, harm: str) -> None:
    ledger = Ledger(tmp_path / "deploy.json")
    ledger.record("export", "k", file)
    file.unlink()
    if harm == "changed":
        file.write_bytes(b"another")
    assert Ledger(tmp_path / "deploy.json").done("export", "k") is None


def test_files_elsewhere(file: Path, tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    Ledger(tmp_path / "workspace" / "deploy.json").record("export", "k", file)
    found = Ledger(tmp_path / "workspace" / "deploy.json").done("export", "k")
    assert found is not None
    assert found.samefile(file)


@pytest.mark.parametrize("content", [b"", b"{", b'{"export": 3}', b"\xff"])
def test_a_damaged_ledger_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "deploy.json").write_bytes(content)
    assert Ledger(tmp_path / "deploy.json").done("export", "k") is None


def test_keys() -> None:
    base = key_of("0.1.0", {"b": 1, "a": Path("x")}, (1, 2))
    assert base == key_of("0.1.0", {"a": Path("x"), "b": 1}, (1, 2))
    others = [key_of("0.1.1", {"b": 1, "a": Path("x")}, (1, 2)),
              key_of("0.1.0", {"b": 1, "a": Path("y")}, (1, 2)),
              key_of("0.1.0", {"b": 1, "a": Path("x")}, (2, 1))]  # fmt: skip
    assert len({base, *others}) == 4
