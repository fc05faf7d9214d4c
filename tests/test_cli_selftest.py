"""`rest-deploy selftest`, and `--no-selftest` of the commands that open an engine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar, sidecar_path, to_json
from rest_deploy.cli import main
from rest_deploy.embed.run import Wishes as EmbedWishes
from rest_deploy.embed.run import open_engine
from rest_deploy.errors import SelfTestError
from rest_deploy.runtime import arrival
from rest_deploy.runtime.provider import default_cache
from rest_deploy.serve.container import settings_for
from rest_deploy.serve.kubernetes import arguments
from rest_deploy.serve.model import Served
from rest_deploy.serve.settings import Settings
from rest_deploy.verbs import Images, Request


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def built(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    request = Request(precision="fp32", images=Images(limit=16), gate_images=16)
    shutil.copy(trained_nano, folder)
    shutil.copy(sidecar_path(trained_nano), folder)
    report = verbs.build_engine(None, request, workspace=folder, backend="onnxruntime")
    return Path(report.path)


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    shutil.copy(sidecar_path(built), tmp_path)
    return Path(shutil.copy(built, tmp_path))


@pytest.fixture
def wrong(engine: Path) -> Path:
    """One whose answers are not the expected ones."""
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.selftest is not None
    selftest = sidecar.build.selftest
    (logits,) = selftest.expected
    values = arrival.values_of(logits.values, logits.channels) * np.float32(1.01)
    changed = msgspec.structs.replace(logits, values=arrival.text_of(values))
    build = msgspec.structs.replace(
        sidecar.build, selftest=msgspec.structs.replace(selftest, expected=(changed,))
    )
    sidecar_path(engine).write_text(to_json(msgspec.structs.replace(sidecar, build=build)))
    return engine


def test_passed(engine: Path) -> None:
    done = run("selftest", engine)
    assert done.exit_code == 0, done.output
    head, columns, logits, built, here = done.stdout.splitlines()
    assert head == f"{engine}: passed"
    assert columns.split() == ["output", "error", "bound", "at", "build", "against"]
    assert logits.split()[0] == "logits"
    assert logits.split()[2] == "1e-05"
    assert logits.endswith("PyTorch float64")
    assert built.removeprefix("  built on") == here.removeprefix("  here    ")
    assert "onnxruntime" in here
    assert len(list(default_cache(engine).glob("selftest-*.json"))) == 1


def test_what_is_remembered_is_forgotten_first(engine: Path) -> None:
    assert run("selftest", engine).exit_code == 0
    (told,) = default_cache(engine).glob("selftest-*.json")
    os.utime(told, ns=(1, 1))
    assert run("selftest", engine).exit_code == 0
    assert told.stat().st_mtime_ns > 1


def test_failed(wrong: Path) -> None:
    done = run("selftest", wrong)
    assert done.exit_code == 1
    assert f"{wrong}: FAILED" in done.output
    assert "does not answer here as it must: built on " in done.output
    assert "build it on this machine: rest-deploy build-engine" in done.output
    assert not list(default_cache(wrong).glob("selftest-*.json"))


@pytest.mark.parametrize("passes", [True, False])
def test_json(passes: bool, request: pytest.FixtureRequest) -> None:  # pytest's
    engine = request.getfixturevalue("engine" if passes else "wrong")
    done = run("selftest", engine, "--json", "--threads", "1")
    assert done.exit_code == (0 if passes else 1)
    told = json.loads(done.stdout)
    assert told["passed"] == passes == (told["why"] == "")
    (row,) = told["rows"]
    assert (row["name"], row["bound"], row["passed"]) == ("logits", 1e-5, passes)
    assert row["error"] == pytest.approx(row["built"] if passes else 0.01, rel=0.5)
    assert told["here"]["threads"] == "one"
    assert told["built"]["backend"] == told["here"]["backend"] == "onnxruntime/cpu"


def test_an_export_carries_none(trained_nano: Path) -> None:
    done = run("selftest", trained_nano)
    assert done.exit_code == 3
    assert "carries no self-test: it is an export" in done.output
    assert f"rest-deploy build-engine {trained_nano} --int8" in done.output


def test_an_older_engine_carries_none(engine: Path) -> None:
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.build is not None
    older = msgspec.structs.replace(sidecar.build, site=None, selftest=None)
    sidecar_path(engine).write_text(to_json(msgspec.structs.replace(sidecar, build=older)))
    done = run("selftest", engine)
    assert done.exit_code == 3
    assert "carries no self-test: it is of an older rest-deploy" in done.output
    assert f"build it again: {sidecar.command}" in done.output
    assert "self-test     none: it is of an older rest-deploy" in run("inspect", engine).output


def test_no_such_file(tmp_path: Path) -> None:
    assert run("selftest", tmp_path / "none.onnx").exit_code == 3


def test_inspect_shows_one_line(engine: Path) -> None:
    lines = [line for line in run("inspect", engine).output.splitlines() if "self-test" in line]
    assert len(lines) == 1
    assert "logits within 1e-05 of PyTorch float64; built on " in lines[0]


def test_commands_refuse_it_unless_told_otherwise(wrong: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(photo)
    for command in (
        ("predict", wrong, photo),
        ("embed", photo, "-o", tmp_path / "out.parquet", "--engine", wrong),
    ):
        done = run(*command)
        assert done.exit_code == 1, done.output
        assert "does not answer here as it must" in done.output
        assert "--no-selftest" in done.output
        done = run(*command, "--no-selftest")
        assert done.exit_code == 0, done.output
    open_engine(wrong, EmbedWishes(selftest=False)).close()


def test_services_refuse_it_unless_told_otherwise(wrong: Path) -> None:
    with pytest.raises(SelfTestError):
        Served.open(Settings(engine=str(wrong)))
    Served.open(Settings(engine=str(wrong), selftest=False)).close()
    done = run("serve", wrong, "--port", "0")
    assert done.exit_code == 1
    assert "does not answer here as it must" in done.output


def test_the_words_for_ray_and_kubernetes(engine: Path) -> None:
    for given, expected in (([], "selftest: true"), (["--no-selftest"], "selftest: false")):
        assert expected in run("ray-serve", engine, "--dry-run", *given).output
    settings = settings_for(engine, name="nano", selftest=False)
    assert "--no-selftest" in arguments(settings)
    assert "--no-selftest" not in arguments(settings_for(engine, name="nano"))
