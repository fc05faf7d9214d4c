"""A bench record for a terminal: a table per shape, at most 100 columns, the advice last."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rest_deploy.bench.record import EngineResult, Mode, Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.text import WIDTH, table

HEADER = (
    "engine", "prec", "median ms", "noise", "p90", "p99 (N)", "img/s", "ratio", "", "error",
    "top-1",
)  # fmt: skip
LEAST_NAME = 10
"""Characters that are left of an engine's name in the worst case."""


def bench(record: Record, written: Sequence[str] = ()) -> str:
    """All of it. written: paths of the files that hold the record and the page.

    Raises what `bench_rows.sound` does.
    """
    record = derived.sound(record)
    lines = [*_head(record)]
    for case in derived.cases(record):
        for mode in _modes(record, case):
            lines += ["", f"{case}, {mode}", _table(record, case, mode)]
    if derived.growth(record):
        lines += ["", "time against the counted work, larger over smallest shape", _growth(record)]
    lines += ["", *_wrapped("", _legend(record))]
    for label, reason in derived.failures(record):
        lines += _wrapped(f"failed: {words.plain(label)}: ", words.plain(reason))
    for note in record.notes:
        lines += _wrapped("note: ", words.plain(note))
    for warning in derived.warnings(record):
        lines += _wrapped("warning: ", words.plain(warning))
    lines += [f"wrote {words.plain(path)}" for path in written]
    if record.advice:
        lines += ["", *_wrapped("", words.plain(record.advice))]
    return "\n".join(lines)


def _head(record: Record) -> list[str]:
    machine = record.environment
    gpus = "".join(f", {gpu}" for gpu in machine.gpus)
    return [
        *_wrapped("", words.plain(
            f"{record.model} ({record.model_sha256[:12]}) on {machine.cpu}, {machine.cores} cores"
            f"{gpus}, {record.created}"
        )),
        *_wrapped("", words.plain(record.command)),
    ]  # fmt: skip


def _modes(record: Record, case: Case) -> list[Mode]:
    """Those whose latency means something: a request among others waits for them."""
    modes: tuple[Mode, ...] = ("isolated", "end-to-end")
    return [mode for mode in modes if derived.rows(record, case, mode)]


def _table(record: Record, case: Case, mode: Mode) -> str:
    """Two spaces between columns where they fit, else one; what still is too wide loses the middle
    of the engines' names."""
    cells = [_cells(row) for row in derived.rows(record, case, mode)]
    whole = table(HEADER, cells)
    if _width(whole) <= WIDTH:
        return whole
    too_wide = _width(table(HEADER, cells, gap=1)) - WIDTH
    if too_wide > 0:
        most = max(LEAST_NAME, max(len(row[0]) for row in cells) - too_wide)
        cells = [(words.shorten(row[0], most), *row[1:]) for row in cells]
    return table(HEADER, cells, gap=1)


def _growth(record: Record) -> str:
    return table(
        ("engine", "from", "to", "time", "FLOPs", "bytes"),
        [
            (
                words.shorten(words.plain(row.engine), 40),
                str(Case(row.small, row.threads)),
                row.large,
                *(words.times(value) for value in (row.measured, row.flops, row.bytes)),
            )
            for row in derived.growth(record)
        ],
    )


def _width(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def _cells(row: derived.Row) -> tuple[str, ...]:
    measured, accuracy = row.measured, row.engine.accuracy
    tail = derived.p99(measured)
    counted = f"({measured.host.n})"
    return (
        _name(row.engine),
        words.shorten(words.plain(row.engine.precision), 6),
        words.three(measured.host.median),
        f"±{measured.noise:.1%}",
        words.three(measured.host.p90),
        f"{tail} {counted}" if tail else counted,
        words.three(row.images_per_second),
        words.interval(row.ratio) if row.ratio else "base" if row.is_base else "",
        words.VERDICTS[row.ratio.verdict] if row.ratio else "",
        words.short_error(accuracy.relative_error) if accuracy else "",
        words.share(accuracy.agreement) if accuracy else "",
    )


def _name(engine: EngineResult) -> str:
    """The label without the precision, which has a column of its own."""
    label = engine.label.removesuffix(f" {engine.precision}")
    return words.plain(label.removeprefix(f"{engine.precision} "))


def _legend(record: Record) -> str:
    images = {engine.accuracy.images for engine in record.engines if engine.accuracy}
    looked = f" on {', '.join(map(str, sorted(images)))} images" if images else ""
    return (
        f"{words.VERDICT_LEGEND}. noise: half of the median's 95 % interval. p99 only with "
        f"N >= {derived.P99_NEEDS}. {words.THROUGHPUT_LEGEND}. error (relative, of the logits) "
        f"and top-1 (the same as the reference): against PyTorch float64{looked}."
    )


def _wrapped(start: str, text: str) -> list[str]:
    """A word longer than a line (a path, a hash) is broken: 100 columns are 100 columns."""
    return textwrap.wrap(
        start + text, WIDTH, subsequent_indent="  ", break_on_hyphens=False
    ) or [start.rstrip()]  # fmt: skip
