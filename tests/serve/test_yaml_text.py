from __future__ import annotations

import random
from typing import Any

import pytest
import yaml

from rest_deploy.serve.yaml_text import to_documents, to_yaml

TEXTS = (
    "plain", "", " space ", "yes", "No", "null", "1", "1.0", "1e3", "0x1F", "12:30:45", "a: b",
    "- a", "# no comment", "it's", '"quoted"', "tab\t", "line\nbreak",
    "two\nlines\n", "\n", "  a\n",
    "back\\slash", "*star", "&and", "{a}", "[a]", "@at", "%percent", "!tag", "|", ">", "a #b",
    "ü🎉", "2026-11-25", "~", "=", "<<", "/abs/path", "a.b/c_d-e", "\x00", "\x85", "\u2028",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(text: str) -> None:
    value: dict[str, Any] = {"key": text, "list": [text, {"deep": text}], f"k{text}": 1}
    assert yaml.safe_load(to_yaml(value)) == value


def made(chance: random.Random, depth: int) -> Any:
    kind = chance.choice("tnbf" if depth == 0 else "tnbfdl")
    if kind == "t":
        return chance.choice(TEXTS)
    if kind == "n":
        return chance.choice([0, -1, 10**12, None])
    if kind == "b":
        return chance.random() < 0.5
    if kind == "f":
        return chance.choice([0.5, 1e-07, 1e20, -3.25])
    size = chance.randrange(4)
    if kind == "d":
        return {f"k{index}": made(chance, depth - 1) for index in range(size)}
    return [made(chance, depth - 1) for _ in range(size)]


def test_whatever_is_written_is_read_again() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        value = {f"k{index}": made(chance, 4) for index in range(3)}
        assert yaml.safe_load(to_yaml(value)) == value, seed


def test_documents() -> None:
    values: list[dict[str, Any]] = [{"a": 1}, {"b": ["x"]}]
    assert list(yaml.safe_load_all(to_documents(values))) == values
