"""Plots of latency, accuracy and throughput: a record and a case -> one SVG each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rest_deploy.bench.record import Measurement, Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report import svg
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.bench_words import three
from rest_deploy.report.markup import Markup
from rest_deploy.report.svg import Look

WIDTH = 460.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 30.0, 40.0
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
            f"{words.short_error(point.error)}{', on the front' * (point.label in winners)}",
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
        title = f"{ratio.other}: {words.interval(ratio)} times {ratio.base}, {ratio.verdict}"
        look = looks[ratio.other]
        rows += [
            svg.text(0, y + 4, words.shorten(ratio.other, 22), kind="label"),
            svg.line(x(ratio.low), y, x(ratio.high), y, f"span {look.classes}"),
            svg.marker(look, x(ratio.ratio), y, title),
        ]
    base = derived.base_label(record)
    return svg.figure(
        name,
        f"Speed against {base} at {case}",
        "; ".join(f"{r.other} {words.interval(r)}, {r.verdict}" for r in found),
        WIDTH,
        height,
        svg.bottom_axis(
            x, TOP - 14, height - BOTTOM, f"times as fast as {words.shorten(base, 22)}", tick, 7
        ),
        svg.line(x(1.0), TOP - 18, x(1.0), height - BOTTOM, "unity"),
        rows,
    )


def throughput(record: Record, case: Case, looks: Looks, name: str) -> Markup | None:
    """Images a second against requests in flight; isolated requests are one. None where nothing
    was saturated."""
    series: dict[str, list[tuple[float, Measurement]]] = {}
    for row in derived.rows(record, case, "saturated"):
        series.setdefault(row.engine.label, []).append((row.measured.in_flight, row.measured))
    for row in derived.rows(record, case):
        known = series.get(row.engine.label, [])
        if known and all(at > 1 for at, _ in known):
            known.append((1, row.measured))
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
        found.append(svg.text(x + 9, lowest + 4, words.shorten(label, 17), kind="label"))
    return found
