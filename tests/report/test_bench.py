"""A bench record on a terminal."""

from __future__ import annotations

import math

import msgspec
import pytest

from rest_deploy.bench.record import Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report.bench import bench
from rest_deploy.report.text import WIDTH
from tests.report.hostile import LABEL, hostile, only, replaced
from tests.report.sample import record


def cells(text: str, heading: str, engine: str, precision: str) -> list[str]:
    """The row of an engine in the table below `heading`."""
    table = text.split(f"\n{heading}\n")[1].split("\n\n")[0]
    (line,) = [line for line in table.splitlines() if line.split()[:2] == [engine, precision]]
    return line.split()


def test_a_row_has_all_of_it() -> None:
    assert cells(bench(record()), "1x3x224x224, isolated", "openvino", "int8") == [
        "openvino", "int8", "9.39", "±0.2%", "9.56", "9.82", "(420)", "145", "4.04",
        "(3.96-4.14)", "faster", "7.5e-3", "99.6%",
    ]  # fmt: skip
    assert "base" in cells(bench(record()), "1x3x224x224, isolated", "pytorch", "fp32")


def test_no_p99_of_few() -> None:
    row = cells(bench(record()), "8x3x448x448, isolated", "openvino", "int8")
    assert row[4:6] == ["269", "(46)"]  # p90, then N


def test_every_shape_has_its_table() -> None:
    text = bench(record())
    for case in derived.cases(record()):
        assert f"\n{case}, isolated\n" in text
    assert text.count(", end-to-end\n") == 2


@pytest.mark.parametrize("verdict", ["faster", "slower", "no difference", "ambiguous"])
def test_verdicts(verdict: str) -> None:
    text = bench(replaced(record(), "ratios.3.verdict", verdict))
    assert words.VERDICTS[verdict] in cells(text, "1x3x224x224, isolated", "openvino", "int8")


@pytest.mark.parametrize("label", ["openvino int8", "int8 openvino", "openvino"])
def test_the_precision_is_said_once(label: str) -> None:
    engine = replaced(only("openvino int8"), "engines.0.label", label)
    assert cells(bench(engine), "1x3x224x224, isolated", "openvino", "int8")


def test_failures_warnings_files_and_the_advice_last() -> None:
    text = bench(record(), ["build/bench.json", "build/bench.html"])
    lines = text.splitlines()
    assert any(line.startswith("failed: tensorrt fp16: no GPU is here") for line in lines)
    assert "note: sample data: no number here was measured" in lines
    assert text.index("warning: ") < text.index("wrote build/bench.json\nwrote build/bench.html")
    assert lines[-2].startswith("Deploy openvino int8: 9.4 ms")


def test_nan_is_a_failure() -> None:
    text = bench(replaced(record(), "engines.4.measurements.0.host.median", math.nan))
    assert "failed: openvino int8: no number was measured: measurements[0].host.median" in text
    assert "\nopenvino    int8" not in text


@pytest.mark.parametrize(
    "made",
    [record(), hostile(), only("pytorch fp32"), only("tensorrt fp16"), only()],
    ids=["sample", "hostile", "base", "failed", "nothing"],
)
def test_no_line_is_wider_than_the_terminal(made: Record) -> None:
    lines = bench(made, ["a/" + "b" * 40 + ".json"]).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(line.isprintable() for line in lines)


def test_the_widest_numbers_fit_too() -> None:
    sample = record()
    wide = replaced(sample, "engines.2.measurements.0.host.n", 123_456)
    for name, value in (("median", 12_345.6), ("p90", 23_456.7), ("p99", 34_567.8)):
        wide = replaced(wide, f"engines.2.measurements.0.host.{name}", value)
    wide = replaced(wide, "ratios.1.ratio", 101.23)
    wide = replaced(wide, "ratios.1.verdict", "ambiguous")
    assert max(map(len, bench(wide).splitlines())) <= WIDTH


def test_a_long_name_keeps_its_ends() -> None:
    text = bench(hostile())
    assert LABEL not in text
    assert "</tit" in text
    assert "…" in text


def test_same_record_same_text() -> None:
    assert bench(record()) == bench(msgspec.json.decode(msgspec.json.encode(record()), type=Record))


def test_growth_where_there_are_several_shapes() -> None:
    text = bench(record())
    _, _, table = text.partition("time against the counted work")
    assert "1x3x224x224  8x3x448x448" in table
    without = bench(msgspec.structs.replace(record(), growth=()))
    assert "counted work" not in without
