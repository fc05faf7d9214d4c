"""`report` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rest_deploy.artifact import to_json
from rest_deploy.report.bench import bench
from rest_deploy.report.markdown import markdown
from rest_deploy.report.page import page
from tests.report.hostile import replaced
from tests.report.sample import record
from tests.test_cli import HEAVY, done, refused, run, untouched


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(to_json(record()), encoding="utf-8")
    return path


def test_table_and_page(stored: Path) -> None:
    target = stored.with_suffix(".html")
    assert done("report", stored) == bench(record(), [str(target)]) + "\n"
    assert target.read_text(encoding="utf-8") == page(record())


def test_page_elsewhere(stored: Path) -> None:
    target = stored.parent / "new" / "page.html"
    assert f"wrote {target}\n" in done("report", stored, "-o", target)
    assert target.is_file()
    assert not stored.with_suffix(".html").exists()


def test_markdown_alone_writes_nothing(stored: Path) -> None:
    with untouched(stored.parent):
        assert done("report", stored, "--markdown") == markdown(record())


def test_markdown_and_a_page(stored: Path) -> None:
    target = stored.parent / "page.html"
    assert done("report", stored, "--markdown", "-o", target) == markdown(record())
    assert target.is_file()


def test_json_is_the_record(stored: Path) -> None:
    with untouched(stored.parent):
        assert json.loads(done("report", stored, "--json")) == json.loads(stored.read_text())
    result = run("report", stored, "--json", "--markdown")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_the_page_does_not_replace_the_record(stored: Path) -> None:
    with untouched(stored.parent):
        refused(run("report", stored, "-o", stored), 3, "is the record itself", "-o")
        refused(run("report", stored, "-o", stored.parent), 3, "is a folder", "bench.html")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the record"),
        (b'{"schema": 1, "created', "cut off"),
        (b"[]", "no record of rest-deploy bench"),
    ],
)
def test_no_record(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "bench.json"
    if content is not None:
        file.write_bytes(content)
    with untouched(tmp_path):
        refused(run("report", file), 3, "bench.json", words, "rest-deploy bench")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"schema": 2}, "schema 2"), ({"engines": None}, "engines"), ({"colour": "red"}, "colour")],
)
def test_not_a_record_of_this_version(stored: Path, change: dict[str, object], words: str) -> None:
    stored.write_text(json.dumps(json.loads(stored.read_text()) | change), encoding="utf-8")
    with untouched(stored.parent):
        refused(run("report", stored), 3, "bench.json", words)


def test_nan_in_a_file_is_refused(stored: Path) -> None:
    """JSON has none: it is stored as null, which is no number."""
    broken = replaced(record(), "engines.1.accuracy.kl", float("nan"))
    stored.write_text(to_json(broken), encoding="utf-8")
    refused(run("report", stored), 3, "null", "$.engines[1].accuracy", "kl")


def test_a_report_needs_no_runtime(stored: Path) -> None:
    code = (
        "import sys; from rest_deploy.cli import main\n"
        "try: main(['report', sys.argv[1]])\n"
        f"finally: print('loaded:', *{HEAVY - {'numpy', 'PIL'}} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(stored)], capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines()[-1].strip() == "loaded:"
