"""Two records side by side, as plain text."""

from __future__ import annotations

import textwrap

from rest_deploy.bench.compare import Pair, RecordComparison
from rest_deploy.report.text import WIDTH, table

REGRESSED = {"no": "", "yes": "SLOWER", "ambiguous": "perhaps slower"}


def comparison(found: RecordComparison) -> str:
    """One row an engine and input; what else changed; the outcome last."""
    header = ("engine", "input", "before", "after", "speed", "95 %", "")
    rows = [
        (
            pair.label,
            _input(pair),
            f"{pair.before_ms:.2f}",
            f"{pair.after_ms:.2f}",
            f"{pair.ratio:.3f}",
            f"{pair.low:.3f} to {pair.high:.3f}",
            REGRESSED[pair.regressed] or pair.verdict,
        )
        for pair in found.pairs
    ]
    lines = [f"before:  {found.before}", f"after:   {found.after}", ""]
    if rows:
        lines += [table(header, rows, left=2), ""]
        lines.append(
            f"medians in ms, of {_runs(found.pairs)} runs; speed: before / after, 2 is twice as "
            "fast now; what differs from one process to the next is not in the intervals"
        )
    lines += [f"warning: unlike machines: {words}" for words in found.differences]
    lines += [f"warning: {words}" for words in found.doubts]
    lines += [f"changed: {words}" for words in found.changes]
    lines += [f"not compared: {words}" for words in found.missing]
    if found.allowed is not None:
        lines += ["", _outcome(found, found.allowed)]
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    """Sentences within the width; rows of the table as they are."""
    if "  " in line or not line:
        return [line]
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _outcome(found: RecordComparison, allowed: float) -> str:
    slower = [pair for pair in found.pairs if pair.regressed == "yes"]
    unclear = [pair for pair in found.pairs if pair.regressed == "ambiguous"]
    parts = []
    if slower:
        parts.append(f"{len(slower)} slower by more than {allowed:.1%}: {_names(slower)}")
    if found.broken:
        parts.append(f"failing now: {', '.join(found.broken)}")
    if unclear:
        parts.append(
            f"{len(unclear)} not certain, measure longer or on a quieter machine: {_names(unclear)}"
        )
    if not parts:
        parts.append(f"none of {len(found.pairs)} is slower by more than {allowed:.1%}")
    return f"{'FAIL' if found.regressed else 'PASS'}: {'; '.join(parts)}"


def _names(pairs: list[Pair]) -> str:
    return ", ".join(f"{pair.label} at {_input(pair)}" for pair in pairs)


def _input(pair: Pair) -> str:
    threads = f", {pair.threads} threads" if pair.threads else ""
    flying = f" x{pair.in_flight}" if pair.mode == "saturated" else ""
    return f"{pair.shape} {pair.mode}{flying}{threads}"


def _runs(pairs: tuple[Pair, ...]) -> str:
    counts = [count for pair in pairs for count in (pair.before_n, pair.after_n)]
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
