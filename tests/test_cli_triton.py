"""A Triton model repository from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rest_deploy.commands.triton import triton_repo
from rest_deploy.serve import triton_schema
from tests.serve.engines import plan_for
from tests.test_cli import done, refused, run

needs_schema = pytest.mark.skipif(
    triton_schema.why_not() is not None, reason="pip install 'rest-deploy[triton]'"
)


@needs_schema
def test_written_and_checked(exported_nano: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    said = done("triton-repo", exported_nano, "-o", root, "--max-batch", 4, "--sizes", "64,96x64",
                "--backend", "python", "--threads", 1)  # fmt: skip
    assert "rest_nano, rest_nano_preprocess, rest_nano_rank, rest_nano_classify" in said
    assert "checked against the ModelConfig of tritonclient" in said
    assert "encoded images by rest_nano_classify" in said
    assert "warning: fresh weights" in said
    assert f"tritonserver --model-repository={root}" in said
    config = triton_schema.parse(root / "rest_nano/config.pbtxt")
    assert [(w.name, w.batch_size) for w in config.model_warmup] == [
        ("1x3x64x64", 1), ("4x3x64x64", 4), ("1x3x96x64", 1), ("4x3x96x64", 4),
    ]  # fmt: skip
    assert done("triton-check", root).endswith("PASS\n")
    assert json.loads(done("triton-check", root, "--json"))["problems"] == []


@needs_schema
def test_without_the_ensemble(exported_nano: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    said = done("triton-repo", exported_nano, "-o", root, "--no-ensemble", "--name", "x", "--json")
    report = json.loads(said)
    assert (report["models"], report["whole"], report["name"]) == (["x"], "", "x")
    assert [path.name for path in root.iterdir()] == ["x"]


@needs_schema
def test_a_repository_that_would_not_load(exported_nano: Path, tmp_path: Path) -> None:
    done("triton-repo", exported_nano, "-o", tmp_path, "--backend", "python")
    (tmp_path / "rest_nano/1/model.py").unlink()
    result = run("triton-check", tmp_path)
    assert result.exit_code == 1
    assert "problem: rest_nano: 1/model.py is missing; the server hangs on that" in result.stdout
    assert "FAIL: 2 problems" in result.stdout  # and it is not as it was written


def test_refusals(exported_nano: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    rtx = plan_for(exported_nano, tmp_path / "x.engine", flavour="tensorrt-rtx")
    refused(run("triton-repo", rtx, "-o", root), 3, "TensorRT-RTX", "--backend python")
    refused(run("triton-repo", tmp_path / "none.onnx", "-o", root), 3, "no such engine")
    refused(run("triton-check", root), 3, "is no folder", "rest-deploy triton-repo")
    assert not root.exists()
    (root / "rest_nano").mkdir(parents=True)
    refused(run("triton-repo", exported_nano, "-o", root), 3, "not written by", "--force")
    assert run("triton-repo", exported_nano).exit_code == 2
    done("triton-repo", exported_nano, "-o", root, "--force")


def test_the_options_of_the_page_are_the_commands() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "triton.md").read_text(encoding="utf-8")
    table = page.partition("## Options")[2].partition("\n\nRequests")[0]
    told = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([^|]*?) ?\|", table, re.MULTILINE))
    true: dict[str, str] = {}
    for option in triton_repo.params:
        for word in (*option.opts, *option.secondary_opts):
            true[word] = str(option.default)
    assert set(told) <= set(true)
    assert len(told) >= 10
    numbers = {word: value for word, value in told.items() if value.isdigit()}
    assert {word: float(true[word]) for word in numbers} == {
        word: float(value) for word, value in numbers.items()
    }


def test_a_folder_that_cannot_be_written(exported_nano: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    refused(run("triton-repo", exported_nano, "-o", blocked), 5, "cannot write into")
