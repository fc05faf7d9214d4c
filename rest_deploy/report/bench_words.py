"""How the reports of a bench record write numbers, verdicts and names."""

from __future__ import annotations

from rest_deploy.bench.record import Ratio

VERDICTS = {"faster": "faster", "slower": "slower", "no difference": "same", "ambiguous": "unclear"}
"""Short words for narrow tables."""

VERDICT_LEGEND = (
    "ratio: of medians, base / engine, 2 is twice as fast, with its 95 % interval; same: no "
    "difference that matters; unclear: the interval does not decide"
)
THROUGHPUT_LEGEND = "img/s: most of the runs with several requests in flight, else of the isolated"


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


def three(value: float) -> str:
    """Three digits, without an exponent: 0.034, 3.42, 27.1, 412."""
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 3
    return f"{value:.{decimals}f}"


def short_error(value: float) -> str:
    """3.8e-3; 0 is exact."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def share(value: float | None) -> str:
    """ "-" for what an engine without classes does not have."""
    if value is None:
        return "-"
    return "100%" if value == 1 else f"{value:.1%}"


def megabytes(size: int) -> str:
    return f"{three(size / 1e6)} MB" if size else ""


def interval(ratio: Ratio) -> str:
    return f"{times(ratio.ratio)} ({times(ratio.low)}-{times(ratio.high)})"


def times(value: float) -> str:
    """A ratio: two decimals as long as they mean something."""
    return f"{value:.2f}" if value < 9.995 else three(value)
