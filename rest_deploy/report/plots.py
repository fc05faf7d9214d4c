"""Plots of latency, accuracy and throughput: a record and a case -> one SVG each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rest_deploy.bench.record import Measurement, Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import svg
from rest_deploy.report.bench_rows import Case, three
from rest_deploy.report.markup import Markup, element, number
from rest_deploy.report.svg import Look

WIDTH = 460.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 30.0, 40.0
DRAWN = 600
"""Samples drawn of one measurement at most; every so many in order of time beyond that."""

Looks = Mapping[str, Look]


def tick(value: float) -> str:
    """The least digits that tell: 0.5, 20, 1500."""
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.0e}".replace("e+0", "e")


def power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def pareto(record: Record, case: Case, looks: Looks, name: str) -> Markup | None:
    """Latency across, relative error up (log); the front is the line. None without a point."""
    points = derived.points(record, case)
    if not points:
        return None
    height = 290.0
    x = svg.linear([point.latency for point in points], LEFT, WIDTH - RIGHT)
    y = svg.logarithmic([point.error for point in points], height - BOTTOM, TOP, room=4.0)
    best = derived.front(points)
    corner: list[tuple[float, float]] = [(x(best[0].latency), TOP)]
    for point in best:
        corner += [(x(point.latency), corner[-1][1]), (x(point.latency), y(point.error))]
    corner.append((WIDTH - RIGHT, corner[-1][1]))
    winners = {point.label for point in best}
    marks = [
        svg.marker(
            looks[point.label],
            x(point.latency),
            y(point.error),
            f"{point.label}: {three(point.latency)} ms, relative error "
            f"{derived.short_error(point.error)}{', on the front' * (point.label in winners)}",
        )
        for point in points
    ]
    names = [(x(point.latency), y(point.error), point.label) for point in points]
    return svg.figure(
        name,
        f"Relative error against latency at {case}",
        "Lower and further left is better. On the front, fastest first: "
        + "; ".join(f"{p.label} {three(p.latency)} ms, {p.error:.1e}" for p in best),
        WIDTH,
        height,
        svg.bottom_axis(x, TOP, height - BOTTOM, "median latency, ms", tick),
        svg.left_axis(y, LEFT, WIDTH - RIGHT, "relative error", power, most=7),
        svg.polyline(corner, "front"),
        marks,
        svg.labels(names, (LEFT, TOP - 4, WIDTH - LEFT - 2, height - BOTTOM - TOP + 4)),
    )


def ratios(record: Record, case: Case, looks: Looks, name: str) -> Markup | None:
    """Speed against the base with its 95 % interval, isolated. None without a ratio."""
    found = [ratio for ratio in record.ratios if case.holds(ratio, "isolated") and ratio.low > 0]
    if not found:
        return None
    height = TOP + 26 * len(found) + BOTTOM - 14
    left = 162.0
    ends = [end for ratio in found for end in (ratio.low, ratio.high, 1.0)]
    x = svg.logarithmic(ends, left, WIDTH - RIGHT, room=1.12)
    rows: list[Markup] = []
    for index, ratio in enumerate(found):
        y = TOP + 26 * index + 6
        title = f"{ratio.other}: {derived.interval(ratio)} times {ratio.base}, {ratio.verdict}"
        look = looks[ratio.other]
        rows += [
            svg.text(0, y + 4, derived.shorten(ratio.other, 22), kind="label"),
            svg.line(x(ratio.low), y, x(ratio.high), y, f"span {look.classes}"),
            svg.marker(look, x(ratio.ratio), y, title),
        ]
    base = derived.base_label(record)
    return svg.figure(
        name,
        f"Speed against {base} at {case}",
        "; ".join(f"{r.other} {derived.interval(r)}, {r.verdict}" for r in found),
        WIDTH,
        height,
        svg.bottom_axis(
            x, TOP - 14, height - BOTTOM, f"times as fast as {derived.shorten(base, 22)}", tick, 7
        ),
        svg.line(x(1.0), TOP - 18, x(1.0), height - BOTTOM, "unity"),
        rows,
    )


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
    step = next((step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if step >= wanted), wanted)
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
        svg.text(4, top + 10, derived.shorten(row.engine.label, 24), kind="label"),
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


def throughput(record: Record, case: Case, looks: Looks, name: str) -> Markup | None:
    """Images a second against requests in flight. None where nothing was saturated."""
    series: dict[str, list[tuple[float, Measurement]]] = {}
    for row in derived.rows(record, case, "saturated"):
        series.setdefault(row.engine.label, []).append((row.measured.in_flight, row.measured))
    title = f"Throughput at {case}"
    return _lines(series, looks, name, title, "requests in flight")


def batches(record: Record, size: tuple[int, int], looks: Looks, name: str) -> Markup | None:
    """Most images a second against the batch, at one height and width. None for one batch."""
    series: dict[str, list[tuple[float, Measurement]]] = {}
    for engine in derived.working(record):
        best: dict[int, Measurement] = {}
        for found in engine.measurements:
            if (found.height, found.width) == size and found.mode != "end-to-end":
                known = best.get(found.batch, found)
                best[found.batch] = max(known, found, key=lambda m: m.images_per_second)
        if best:
            series[engine.label] = list(best.items())
    if len({batch for points in series.values() for batch, _ in points}) < 2:
        return None
    return _lines(series, looks, name, f"Throughput at {size[0]}x{size[1]}", "batch")


def _lines(
    series: Mapping[str, list[tuple[float, Measurement]]],
    looks: Looks,
    name: str,
    title: str,
    across: str,
) -> Markup | None:
    if not series:
        return None
    height = 250.0
    places = sorted({at for points in series.values() for at, _ in points})
    room = 1.15 if len(places) > 1 else 2.0
    x = svg.logarithmic(places, LEFT, WIDTH - 118, room)
    y = svg.linear(
        [found.images_per_second for points in series.values() for _, found in points],
        height - BOTTOM,
        TOP,
    )
    drawn: list[Markup] = []
    ends = []
    for label, points in series.items():
        line = [(x(at), y(found.images_per_second)) for at, found in sorted(points, key=_first)]
        drawn.append(svg.polyline(line, f"series {looks[label].classes}"))
        for at, found in points:
            said = f"{label}, {across} {tick(at)}: {three(found.images_per_second)} images/s"
            drawn.append(svg.marker(looks[label], x(at), y(found.images_per_second), said))
        ends.append((*line[-1], label))
    axis = [
        part
        for at in places
        for part in (svg.line(x(at), TOP, x(at), height - BOTTOM, "grid"),
                     svg.text(x(at), height - BOTTOM + 15, tick(at), "middle"))
    ]  # fmt: skip
    return svg.figure(
        name,
        title,
        "; ".join(
            f"{label}: " + ", ".join(f"{tick(at)} -> {three(found.images_per_second)}"
                                     for at, found in sorted(points, key=_first))
            for label, points in series.items()
        ),
        WIDTH,
        height,
        axis,
        svg.text(x.end, height - BOTTOM + 31, across, "end", "axis"),
        svg.left_axis(y, LEFT, x.end, "images/s", tick),
        drawn,
        _end_labels(ends),
    )  # fmt: skip


def _first(point: tuple[float, Measurement]) -> float:
    return point[0]


def _end_labels(ends: Sequence[tuple[float, float, str]]) -> list[Markup]:
    """At the right of each line, pushed apart so that none covers another."""
    found = []
    lowest = -1e9
    for x, y, label in sorted(ends, key=lambda end: (end[1], end[2])):
        lowest = max(y, lowest + 14)
        found.append(svg.text(x + 9, lowest + 4, derived.shorten(label, 17), kind="label"))
    return found
