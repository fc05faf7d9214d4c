"""How the reports of a bench record write numbers, verdicts and names."""

from __future__ import annotations

from rest_deploy.bench.digits import share, short_error, three, times
from rest_deploy.bench.record import Ratio

__all__ = [
    "THROUGHPUT_LEGEND", "VERDICTS", "VERDICT_LEGEND", "interval", "megabytes", "plain", "share",
    "short_error", "shorten", "three", "times",
]  # fmt: skip

VERDICTS = {"faster": "faster", "slower": "slower", "no difference": "same", "ambiguous": "unclear"}
"""Short words for narrow tables."""

VERDICT_LEGEND = (
    "ratio: of medians, base / engine, 2 is twice as fast, with its 95 % interval; same: no "
    "difference that matters; unclear: the interval does not decide"
)
THROUGHPUT_LEGEND = "img/s: the most of all runs, isolated or with several requests in flight"


def plain(text: str) -> str:
    """Without control characters: a label may not move the cursor or break a line."""
    return "".join(character if character.isprintable() else "�" for character in text)


def shorten(text: str, most: int) -> str:
    """At most `most` characters; the middle goes, names differ at their ends."""
    if len(text) <= most:
        return text
    head = most // 2
    tail = most - 1 - head
    return text[:head] + "…" + (text[-tail:] if tail else "")


def megabytes(size: int) -> str:
    return f"{three(size / 1e6)} MB" if size else ""


def interval(ratio: Ratio) -> str:
    return f"{times(ratio.ratio)} ({times(ratio.low)}-{times(ratio.high)})"
