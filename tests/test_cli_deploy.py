"""From a checkpoint to an engine in one command: again, changed, killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rest_deploy.artifact import sha256_file
from rest_deploy.verbs import DeployReport
from tests.conftest import TRAINED_WEIGHTS
from tests.test_cli import CLONE, done, refused, run

pytest.importorskip("torch")
LESS = ("--limit", "16", "--gate-images", "16")


def arguments(workspace: Path, *more: str) -> list[Any]:
    return ["deploy", "--variant", "nano", "--checkpoint", TRAINED_WEIGHTS, "--int8",
            "--backend", "onnxruntime", "--workspace", workspace, *LESS,
            *([] if "--bench-seconds" in more else ["--no-bench"]), *more]  # fmt: skip


def deployed(workspace: Path, *more: str) -> DeployReport:
    return msgspec.json.decode(done(*arguments(workspace, *more), "--json"), type=DeployReport)


def reused(report: DeployReport) -> list[bool]:
    return [step.reused for step in report.steps]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeployReport]:
    folder = tmp_path_factory.mktemp("deployed") / "workspace"
    return folder, deployed(folder)


@pytest.fixture
def workspace(finished: tuple[Path, DeployReport], tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "workspace")
    return tmp_path / "workspace"


def hashes(report: DeployReport) -> list[str]:
    return [step.sha256 for step in report.steps]


def test_once(finished: tuple[Path, DeployReport]) -> None:
    folder, report = finished
    assert [step.name for step in report.steps] == [
        "export", "calibrate", "build int8 for onnxruntime",
    ]  # fmt: skip
    assert reused(report) == [False] * 3
    assert report.engine == str(folder / "rest_nano.int8.onnxruntime.onnx")
    export, table, engine = report.steps
    assert [sha256_file(Path(step.file)) for step in (export, engine)] == [
        export.sha256, engine.sha256,
    ]  # fmt: skip
    assert Path(table.file).is_file()
    assert "agreement 100.0%" in report.steps[-1].summary


def test_again_nothing_is_done(finished: tuple[Path, DeployReport], workspace: Path) -> None:
    report = deployed(workspace)
    assert reused(report) == [True] * 3
    assert hashes(report) == hashes(finished[1])
    said = done(*arguments(workspace))
    assert "export: up to date" in said
    assert "build int8 for onnxruntime: up to date" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--gate-images", "17"), [True, True, False]),
        (("--limit", "17"), [True, False, False]),
        (("--num-classes", "22", "--labels", "LABELS"), [False, False, False]),
    ],
)
def test_what_changed_is_done(
    workspace: Path, tmp_path: Path, change: tuple[str, ...], expected: list[bool]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"thing {index}" for index in range(22)))
    given = [str(labels) if word == "LABELS" else word for word in change]
    assert reused(deployed(workspace, *given)) == expected


def test_an_export_that_was_touched(finished: tuple[Path, DeployReport], workspace: Path) -> None:
    with (workspace / "rest_nano.onnx").open("ab") as stream:
        stream.write(b"x")
    report = deployed(workspace)
    assert reused(report) == [False, True, True]
    assert hashes(report) == hashes(finished[1])


def test_a_killed_run_is_gone_on_with(finished: tuple[Path, DeployReport], tmp_path: Path) -> None:
    """SIGKILL after the export, and in it: the next run ends with the hashes of an undisturbed."""
    workspace = tmp_path / "workspace"
    for seen in (".rest-deploy-*/*.onnx", "deploy.json"):
        process = subprocess.Popen(
            [sys.executable, "-m", "rest_deploy.cli", *map(str, arguments(workspace))],
            cwd=CLONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 120
        while not list(workspace.glob(seen)) and time.monotonic() < until:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        assert not (workspace / "rest_nano.int8.onnxruntime.onnx").exists()
    report = deployed(workspace)
    assert reused(report)[0]
    assert not reused(report)[-1]
    assert hashes(report) == hashes(finished[1])
    assert list(workspace.glob(".rest-deploy-*")) == [], "leftovers of the killed are swept"


def test_nothing_is_begun_that_cannot_end(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    refused(run(*arguments(workspace, "--backend", "tensorrt")), 4, "tensorrt")
    refused(
        run(*arguments(workspace, "--labels", "none.txt")), 3, "cannot read the labels none.txt"
    )
    refused(
        run("deploy", "--variant", "nano", "--checkpoint", "none.pth", "--workspace", workspace),
        3, "none.pth",
    )  # fmt: skip
    assert not workspace.exists()


@pytest.mark.slow
def test_the_engine_is_measured_once(workspace: Path) -> None:
    """And again when the engine is another."""
    given = [
        word for word in arguments(workspace, "--bench-seconds", "0.1") if word != "--no-bench"
    ]

    def record() -> DeployReport:
        return msgspec.json.decode(done(*given, "--json"), type=DeployReport)

    first, second = record(), record()
    assert [step.name for step in first.steps][-1] == "bench"
    assert reused(first) == [True, True, True, False]
    assert reused(second) == [True] * 4
    assert first.record == second.record
    assert Path(first.record).with_suffix(".html").is_file()
    assert first.advice
    said = done(*given)
    assert f"rest-deploy report {first.record}" in said
