"""A bench record as GitHub Markdown."""

from __future__ import annotations

import math
import re

import msgspec
import pytest

from rest_deploy.bench.record import Record
from rest_deploy.report.markdown import markdown, text
from tests.report.hostile import hostile, only, replaced
from tests.report.sample import record


def problems(source: str) -> list[str]:
    """Tables whose rows differ in their number of cells; HTML; mentions; addresses."""
    found = []
    cells = 0
    fence = ""
    for line in source.splitlines():
        if fence or line.startswith("```"):
            fence = "" if fence and line == fence else fence or line.removesuffix("sh")
            continue
        row = re.split(r"(?<!\\)\|", line) if line.startswith("|") else []
        if row and cells and len(row) != cells:
            found.append(f"{len(row)} cells instead of {cells}: {line}")
        cells = len(row)
        if re.search(r"(?<!\\)[<>`]|@\w|://", line):
            found.append(f"markup: {line}")
    return found


@pytest.mark.parametrize("made", [record(), hostile(), only("tensorrt fp16")],
                         ids=["sample", "hostile", "failed"])  # fmt: skip
def test_it_is_what_it_should_be(made: Record) -> None:
    assert problems(markdown(made)) == []


@pytest.mark.parametrize(
    "source", ["| a | b |\n| 1 |", "| a | b |\n| 1 | 2 | 3 |", "x <b>", "ask @you", "http://a.b"]
)
def test_the_check_finds(source: str) -> None:
    assert len(problems(source)) == 1


def test_contents() -> None:
    made = markdown(record())
    assert made.startswith("## Benchmark of rest\\_lite\n\n**Deploy openvino int8: 9.4 ms")
    assert ("| openvino int8 | int8 | 9.39 | ±0.2% | 9.56 | 9.82 | 420 | 145 | 4.04 (3.96-4.14) | "
            "faster | 7.5e-03 | 99.6% |") in made  # fmt: skip
    assert "| openvino int8 | int8 | 263 | ±0.8% | 269 |  | 46 |" in made  # no p99 of 46
    assert "```sh\nrest-deploy bench build/rest_lite.onnx" in made
    assert "- failed: tensorrt fp16: no GPU is here" in made
    assert "- warning: openvino int8, 8x3x448x448 isolated: the clock fell by 9 %" in made


def test_nan_is_a_failure() -> None:
    made = markdown(replaced(record(), "engines.4.accuracy.kl", math.nan))
    assert "- failed: openvino int8: no number was measured: accuracy.kl is nan" in made
    assert "| openvino int8 |" not in made


def test_backticks_in_a_command_do_not_end_its_block() -> None:
    assert "````sh\necho ```\n````" in markdown(replaced(record(), "command", "echo ```"))


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [("a|b", r"a\|b"), ("<b>", r"\<b\>"), ("[x](y)", r"\[x\](y)"), ("#12", r"\#12"),
     ("a_b*c", r"a\_b\*c"), ("@you", "@\u200byou"), ("http://x", "http:\u200b//x"),
     ("two\nlines", "two�lines")],
)  # fmt: skip
def test_escape(plain: str, escaped: str) -> None:
    assert text(plain) == escaped


def test_growth_where_there_are_several_shapes() -> None:
    assert "### Time against the counted work" in markdown(record())
    assert "counted work" not in markdown(msgspec.structs.replace(record(), growth=()))
