"""Benchmarks on the command line: comparing two records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from rest_deploy.bench import store
from rest_deploy.bench.record import Record
from rest_deploy.cli import main
from tests.bench.records import MACHINE, engine, measurement, record
from tests.test_cli import done, refused, run


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Path]:
    """Files of records: a base, the same again, 20 % slower, about 5 % slower, another machine."""

    def two(factor: float, seed: int) -> Record:
        return record(
            engine("int8", measurement(10 * factor, seed=seed)),
            engine("fp32", measurement(25, seed=seed + 1)),
        )

    made = {
        "base": two(1.0, 1),
        "same": two(1.0, 11),
        "slow": two(1.2, 21),
        "near": two(1.05, 31),
        "unlike": replace(two(1.0, 1), environment=replace(MACHINE, cores=64)),
        "broken": record(engine("int8", failed="answers NaN or infinity"),
                         engine("fp32", measurement(25, seed=41))),
    }  # fmt: skip
    return {name: store.write(value, tmp_path / name) for name, value in made.items()}


def test_nothing_changed(stored: dict[str, Path]) -> None:
    text = done("compare", stored["base"], stored["same"], "--fail-if-slower", "5%")
    assert text.count("no difference") == 2
    assert text.splitlines()[-1] == "PASS: none of 2 is slower by more than 5.0%"
    assert max(map(len, text.splitlines()[3:])) <= 100


def test_slower(stored: dict[str, Path]) -> None:
    result = run("compare", stored["base"], stored["slow"], "--fail-if-slower", "5")
    assert result.exit_code == 1
    assert "SLOWER" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last == "FAIL: 1 slower by more than 5.0%: int8 at 1x3x224x224 isolated"


def test_slower_without_being_asked(stored: dict[str, Path]) -> None:
    text = done("compare", stored["base"], stored["slow"])
    assert " slower" in text
    assert "FAIL" not in text
    assert "SLOWER" not in text


def test_slower_by_less_than_allowed(stored: dict[str, Path]) -> None:
    done("compare", stored["base"], stored["slow"], "--fail-if-slower", "50%")


def test_not_certain_is_said(stored: dict[str, Path]) -> None:
    text = done("compare", stored["base"], stored["near"], "--fail-if-slower", "5%")
    assert "perhaps slower" in text
    last = text[text.index("PASS: ") :]
    assert " ".join(last.split()) == (
        "PASS: 1 not certain, measure longer or on a quieter machine: int8 at 1x3x224x224 isolated"
    )


def test_failing_now(stored: dict[str, Path]) -> None:
    result = run("compare", stored["base"], stored["broken"], "--fail-if-slower", "5%")
    assert result.exit_code == 1
    assert "not compared: int8: failed in " in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == "FAIL: failing now: int8"


def test_unlike_machines(stored: dict[str, Path]) -> None:
    arguments = ("compare", stored["base"], stored["unlike"])
    refused(run(*arguments), 3, "unlike machines", "cores 2 and 64", "--unlike-machines")
    text = done(*arguments, "--unlike-machines")
    assert "warning: unlike machines: cores 2 and 64" in text


def test_json(stored: dict[str, Path]) -> None:
    result = run("compare", stored["base"], stored["slow"], "--fail-if-slower", "5%", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [pair["regressed"] for pair in found["pairs"]] == ["yes", "no"]
    assert found["allowed"] == 0.05


def test_no_record(stored: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "x.json"
    refused(run("compare", stored["base"], other), 3, "cannot read the record")
    other.write_text('{"schema": 9}', encoding="utf-8")
    refused(run("compare", other, stored["base"]), 3, "has schema 9")


@pytest.mark.parametrize("value", ["fast", "-5%", "5%%", "", "1e3"])
def test_no_percentage(stored: dict[str, Path], value: str) -> None:
    result = CliRunner().invoke(
        main, ["compare", *map(str, (stored["base"], stored["same"])), "--fail-if-slower", value]
    )
    assert result.exit_code == 2
    assert "is not a percentage like 5%" in result.stderr


def test_the_three_commands(tmp_path: Path) -> None:
    """As they stand in the README, but for the small model and less time."""
    workspace = ("--workspace", str(tmp_path))
    done("export", "--variant", "nano", *workspace)
    done("build-engine", "--int8", "--limit", "16", "--gate-images", "16", *workspace)
    said = done("bench", "--seconds", "0.2", "--images", "16", "--batches", "1", *workspace)
    assert "1x3x224x224, isolated" in said
    assert "PyTorch" in said
    (record,) = tmp_path.glob("bench/*.json")
    (page,) = tmp_path.glob("bench/*.html")
    assert f"wrote {record}" in said
    assert f"wrote {page}" in said
    assert said.count("\n") < 90, "a report that is read"
    assert "1x3x224x224, end-to-end" in done("report", record)
    assert "fp32 export" in done("compare", record, record, "--fail-if-slower", "5%")
    found = json.loads(done("bench", "--seconds", "0.1", "--images", "16", "--batches", "1",
                            "--no-pytorch", "--no-profile", "--no-cold-start", "--in-flight", "1",
                            "--json", *workspace))  # fmt: skip
    assert len(found["record"]["engines"]) == 2
