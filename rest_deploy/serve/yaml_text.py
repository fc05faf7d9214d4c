"""Plain values as YAML that a person would write: blocks, and quotes where they are needed.

Writing alone, for files that other tools read; texts with line breaks become literal blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

Plain = str | int | float | bool | None | Sequence["Plain"] | Mapping[str, "Plain"]

_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
"""Which YAML 1.1 does not read as texts."""


def to_yaml(value: Mapping[str, Plain]) -> str:
    """One document."""
    return "\n".join(_block(value, 0)) + "\n"


def to_documents(values: Sequence[Mapping[str, Plain]]) -> str:
    """Several in one file."""
    return "---\n".join(to_yaml(value) for value in values)


def _block(value: Plain, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if _is_scalar(inner):
                yield from _scalar_lines(f"{indent}{_scalar(key)}:", inner, depth + 1)
            else:
                yield f"{indent}{_scalar(key)}:"
                yield from _block(inner, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            if _is_scalar(inner):
                yield from _scalar_lines(f"{indent}-", inner, depth + 1)
            else:
                first, *rest = _block(inner, depth + 1)
                yield f"{indent}- {first.lstrip()}"
                yield from rest


def _is_scalar(value: Plain) -> bool:
    """Also what is empty: it has no lines of its own."""
    return isinstance(value, str | int | float | None) or not value


def _scalar_lines(head: str, value: Plain, depth: int) -> Iterator[str]:
    if isinstance(value, str) and _is_literal(value):
        yield f"{head} |"
        yield from (f"{'  ' * depth}{line}".rstrip() for line in value.splitlines())
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: Plain) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):  # JSON's texts are YAML's, but for what YAML calls a line break
        return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # 1e+20 would be a text
    return text


def _is_literal(text: str) -> bool:
    """Lines that stand in a block as they are."""
    whole = text.endswith("\n") and text.strip() == text[:-1] != ""
    return whole and all(line.isprintable() for line in text[:-1].split("\n"))
