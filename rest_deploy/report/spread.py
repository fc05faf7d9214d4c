"""How steady a latency is: every request, its density, median and p99, one row an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rest_deploy.bench.record import Measurement, Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report import svg
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.bench_words import three
from rest_deploy.report.markup import Markup, element, number
from rest_deploy.report.plots import BOTTOM, WIDTH, Looks
from rest_deploy.report.svg import Look

DRAWN = 600
"""Samples drawn of one measurement at most; every so many in order of time beyond that."""


def distributions(record: Record, case: Case, looks: Looks, name: str) -> Markup | None:
    """Every sample over its engine's median as a dot, their density above; median and p99 marked.

    None without a sample. How steady, not how fast: on one axis of milliseconds a fast and a slow
    engine would both be a line.
    """
    rows = [row for row in derived.rows(record, case) if _drawable(row.measured)]
    if not rows:
        return None
    deep = 60.0
    bottom = 4 + deep * len(rows)
    least = min(min(row.measured.samples) / row.measured.host.median for row in rows)
    most = max(_end(row.measured) for row in rows)
    x = svg.Scale(min(least, 0.97) - 0.02, max(most, 1.15) + 0.02, 4, WIDTH - 6)
    content: list[Markup] = []
    for index, row in enumerate(rows):
        top = 2 + deep * index
        if index:
            content.append(svg.line(0, top, WIDTH, top, "grid"))
        content += _raincloud(row, x, top + 5, looks[row.engine.label])
    return svg.figure(
        name,
        f"Spread of the latency of isolated requests at {case}",
        "; ".join(
            f"{row.engine.label} median {three(row.measured.host.median)} ms"
            + (f", p99 {derived.p99(row.measured)} ms" if derived.p99(row.measured) else "")
            + f", N {row.measured.host.n}"
            for row in rows
        ),
        WIDTH,
        bottom + BOTTOM,
        _over_median(x, 2, bottom),
        content,
    )


def _over_median(x: svg.Scale, top: float, bottom: float) -> list[Markup]:
    """Grid lines at the median and at round percentages above it."""
    wanted = (x.high - 1) / 5
    step = next(
        (step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if step >= wanted), wanted
    )
    found = []
    for index in range(int((x.high - 1) / step) + 1):
        at = x(1 + index * step)
        said = f"+{index * step:.0%}" if index else "median"
        found += [svg.line(at, top, at, bottom, "grid"), svg.text(at, bottom + 15, said, "middle")]
    return [*found, svg.text(x.end, bottom + 31, "longer than the median", "end", "axis")]


def _drawable(measured: Measurement) -> bool:
    return len(measured.samples) > 0 and min(measured.samples) > 0 and measured.host.median > 0


def _end(measured: Measurement) -> float:
    """Where the axis may end: at p99, which a single outlier does not move, else at the largest."""
    host = measured.host
    return (host.p99 * 1.1 if host.n >= derived.P99_NEEDS else host.max) / host.median


def _raincloud(row: derived.Row, x: svg.Scale, top: float, look: Look) -> list[Markup]:
    measured, median = row.measured, row.measured.host.median
    samples = measured.samples[:: -(-len(measured.samples) // DRAWN)]
    ground = top + 40
    outline = [
        (x(float(at) / median), ground - 24 * float(part))
        for at, part in zip(*density(measured.samples), strict=True)
    ]
    dots = "".join(
        f"M{number(x(value / median))} {number(ground + 2.5 + 8 * (index * 0.618034 % 1))}h0"
        for index, value in enumerate(samples)
    )
    tail = derived.p99(measured)
    said = f"median {three(median)}" + (f", p99 {tail}" if tail else "")
    drawn = [
        svg.text(4, top + 10, words.shorten(row.engine.label, 24), kind="label"),
        svg.text(WIDTH - 6, top + 10, f"{said} ms, N {measured.host.n}", "end", "figure"),
        svg.polyline([(outline[0][0], ground), *outline, (outline[-1][0], ground)],
                     f"cloud {look.classes}"),
        element("path", d=dots, class_=f"rain {look.classes}"),
        svg.line(x(1.0), ground - 26, x(1.0), ground + 12, "median"),
    ]  # fmt: skip
    if tail:
        at = x(measured.host.p99 / median)
        drawn.append(svg.line(at, ground - 12, at, ground + 12, "tail"))
    return drawn


def density(samples: Sequence[float], places: int = 72) -> tuple[Sequence[float], Sequence[float]]:
    """(values, density 0..1) of positive samples: Gaussian kernels on the logarithm.

    Bandwidth: 0.9 min(s, IQR / 1.34) n^(-1/5) (Silverman 1986, eq. 3.31), at least a 300th of the
    range, which equal samples would make 0.
    """
    logs = np.log(np.asarray(samples, dtype=np.float64))
    quarter, three_quarters = np.percentile(logs, [25, 75])
    inner = (three_quarters - quarter) / 1.34
    deviation = float(logs.std())
    rule = 0.9 * (min(deviation, inner) or deviation) * len(logs) ** -0.2
    width = max(rule, float(np.ptp(logs)) / 300, 1e-4)
    grid = np.linspace(logs.min() - 3 * width, logs.max() + 3 * width, places)
    found = np.exp(-0.5 * ((grid[:, None] - logs[None, :]) / width) ** 2).sum(axis=1)
    return list(np.exp(grid)), list(found / found.max())
