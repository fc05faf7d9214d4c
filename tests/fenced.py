"""Fenced blocks of a Markdown page, run in order as a reader would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """language: the first word behind the fence; words: the others. line: of the fence."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Those with a language, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w[^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        language, *words = match[1].split()
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, tuple(words), match[2], line))
    return found
