"""`rest-deploy embed` as a user meets it; what it computes is tests/embed/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.embed.conftest import fill
from tests.test_cli import done, refused, run

pytest.importorskip("pyarrow")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", 10, 1)


def test_report(trained_nano: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    words = ("embed", photos, "-o", output, "--engine", trained_nano, "--size", 32)
    text = done(*words)
    assert f"{output}: labels of 9 images" in text
    assert f"without an answer: 1 (10.00%), in {tmp_path}/out.bad.parquet" in text
    assert "nothing was computed" in done(*words)
    found = json.loads(done(*words, "--json"))
    assert (found["images"], found["rows"], found["bad"], found["resumed"]) == (10, 9, 1, 10)


def test_engine_of_the_workspace(trained_nano: Path, photos: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(trained_nano.parent, workspace)
    output = tmp_path / "out.parquet"
    text = done("embed", photos, "-o", output, "--workspace", workspace, "--size", 32)
    assert f"engine: {workspace}/rest_nano.onnx" in text
    refused(run("embed", photos, "-o", output, "--workspace", tmp_path / "empty"), 3,
            "no exported model")  # fmt: skip


@pytest.mark.parametrize(("limit", "code"), [("10%", 0), ("9%", 1)])
def test_too_many_bad(
    trained_nano: Path, photos: Path, tmp_path: Path, limit: str, code: int
) -> None:
    output = tmp_path / "out.parquet"
    result = run("embed", photos, "-o", output, "--engine", trained_nano, "--size", 32,
                 "--max-bad", limit)  # fmt: skip
    assert result.exit_code == code
    assert ("FAIL: more than 9.00%" in result.stdout) == bool(code)
    assert output.is_file()


def test_other_options_are_refused(trained_nano: Path, photos: Path, tmp_path: Path) -> None:
    words = ("embed", photos, "-o", tmp_path / "out.parquet", "--engine", trained_nano)
    done(*words, "--size", 32)
    refused(run(*words, "--size", 48), 3, "size was (32, 32), is (48, 48)", "choose another -o")


def test_without_pyarrow(
    trained_nano: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rest_deploy import errors

    present = errors.installed
    monkeypatch.setattr(errors, "installed", lambda name: name != "pyarrow" and present(name))
    result = run("embed", photos, "-o", tmp_path / "out.parquet", "--engine", trained_nano)
    refused(result, 4, "'pyarrow'", "pip install 'rest-deploy[embed]'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
