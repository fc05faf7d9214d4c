"""`rest-deploy embed` as a user meets it; what it computes is tests/embed/."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.embed.conftest import fill
from tests.test_cli import done, refused, run

DOCS = Path(__file__).resolve().parents[1] / "docs" / "bulk.md"


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


def test_the_run_in_the_docs(
    trained_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-image's photos: answers and refusals are those that docs/bulk.md shows."""
    skimage = importlib.util.find_spec("skimage")
    if skimage is None or skimage.origin is None:
        pytest.skip("scikit-image is not installed")
    data = Path(skimage.origin).parent / "data"
    shutil.copytree(trained_nano.parent, tmp_path / "build")
    (tmp_path / "photos").mkdir()
    for path in data.iterdir():
        if path.suffix in {".png", ".jpg", ".tif", ".gif"}:
            shutil.copy(path, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    done("embed", "photos", "-o", "labels.parquet", "--top", 2)
    shown = DOCS.read_text(encoding="utf-8")
    for row in parquet.read_table("labels.parquet").slice(0, 4).to_pylist():
        line = f"{row['id']} {row['label']} {[round(p, 3) for p in row['probability']]}"
        assert line in shown
    (listed,) = re.findall(r"^    (\[\{'id'.*?\}\])$", shown, re.DOTALL | re.MULTILINE)
    assert parquet.read_table("labels.bad.parquet").to_pylist() == ast.literal_eval(listed)
