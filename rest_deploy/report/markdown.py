"""A bench record as GitHub Markdown, for an issue or a README."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rest_deploy.bench.record import Mode, Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report.bench_rows import Case

NO_WIDTH = "\u200b"
MODES: tuple[Mode, ...] = ("isolated", "end-to-end")


def markdown(record: Record) -> str:
    """Headings, tables and lists; text of the record is escaped, so a label stays text.

    Raises what `bench_rows.sound` does.
    """
    record = derived.sound(record)
    machine = record.environment
    lines = [f"## Benchmark of {text(record.model)}", ""]
    if record.advice:
        lines += [f"**{text(record.advice)}**", ""]
    lines += [
        f"{text(machine.cpu)}, {machine.cores} cores"
        f"{''.join(f', {text(gpu)}' for gpu in machine.gpus)}; {text(record.created)}; "
        f"model {text(record.model_sha256[:12])}; {_packages(machine.packages)}",
        "",
        *_fence(record.command),
    ]
    for case in derived.cases(record):
        for mode in MODES:
            if derived.rows(record, case, mode):
                lines += ["", f"### {case}, {mode}", "", *_latency(record, case, mode)]
        saturated = derived.rows(record, case, "saturated")
        if saturated:
            lines += ["", f"### {case}, several requests in flight", "", *_throughput(saturated)]
    if derived.growth(record):
        lines += ["", "### Time against the counted work", "", *_growth(record)]
    lines += ["", f"{text(words.VERDICT_LEGEND)}. {text(words.THROUGHPUT_LEGEND)}. Error and "
              "agreement: logits against PyTorch in float64."]  # fmt: skip
    failed = [f"- failed: {text(label)}: {text(why)}" for label, why in derived.failures(record)]
    warned = [f"- note: {text(note)}" for note in record.notes]
    warned += [f"- warning: {text(warning)}" for warning in derived.warnings(record)]
    if failed or warned:
        lines += ["", *failed, *warned]
    return "\n".join(lines) + "\n"


def text(value: str) -> str:
    """Plain text in Markdown: nothing of it is markup, HTML, a mention or a link."""
    escaped = re.sub(r"([\\`*_\[\]#|<>&~$])", r"\\\1", words.plain(value))
    # GitHub mentions after "@" and links bare addresses however they are escaped: a space of no
    # width breaks both.
    return escaped.replace("@", f"@{NO_WIDTH}").replace("://", f":{NO_WIDTH}//")


def _latency(record: Record, case: Case, mode: Mode) -> list[str]:
    header = ("engine", "precision", "median ms", "noise", "p90 ms", "p99 ms", "N", "img/s",
              "ratio", "verdict", "error", "agreement")  # fmt: skip
    rows = []
    for row in derived.rows(record, case, mode):
        host, accuracy = row.measured.host, row.engine.accuracy
        rows.append((
            text(row.engine.label), text(row.engine.precision), words.three(host.median),
            f"±{row.measured.noise:.1%}", words.three(host.p90), derived.p99(row.measured),
            str(host.n), words.three(row.images_per_second),
            words.interval(row.ratio) if row.ratio else "base" if row.is_base else "",
            row.ratio.verdict if row.ratio else "",
            f"{accuracy.relative_error:.1e}" if accuracy else "",
            words.share(accuracy.agreement) if accuracy else "",
        ))  # fmt: skip
    return table(header, rows, left=2)


def _throughput(rows: Sequence[derived.Row]) -> list[str]:
    header = ("engine", "in flight", "img/s", "ratio", "verdict", "median ms", "p99 ms", "N")
    return table(header, [
        (text(row.engine.label), str(row.measured.in_flight),
         words.three(row.measured.images_per_second),
         words.interval(row.ratio) if row.ratio else "", row.ratio.verdict if row.ratio else "",
         words.three(row.measured.host.median),
         derived.p99(row.measured), str(row.measured.host.n))
        for row in rows
    ], left=1)  # fmt: skip


def _growth(record: Record) -> list[str]:
    header = ("engine", "from", "to", "time", "FLOPs", "bytes")
    return table(header, [
        (text(row.engine), str(Case(row.small, row.threads)), text(row.large),
         *(words.times(value) for value in (row.measured, row.flops, row.bytes)))
        for row in derived.growth(record)
    ], left=3)  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """The first `left` columns are left-aligned, the others right. Cells are escaped already."""
    rule = [":--" if index < left else "--:" for index in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _packages(packages: dict[str, str]) -> str:
    return ", ".join(f"{text(name)} {text(version)}" for name, version in packages.items())


def _fence(command: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks inside."""
    inside = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, inside + 1)
    return [f"{fence}sh", words.plain(command), fence]
