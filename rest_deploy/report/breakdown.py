"""Where the time goes: blocks as stacked bars, against the roofline, and tables with shades."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rest_deploy.bench.record import BlockTime, Ceilings, EngineResult
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report import svg
from rest_deploy.report.bench_words import three
from rest_deploy.report.markup import Markup
from rest_deploy.report.plots import BOTTOM, LEFT, RIGHT, TOP, WIDTH, tick
from rest_deploy.report.svg import Look

KINDS = ("gemm", "conv", "attention", "norm", "other")
"""In the order of a bar; kinds the page does not know are "other" in colour."""

SHADES = 8
"""Steps of a heat map, 0 the palest; page.css has as many colours."""


def by_block(engine: EngineResult) -> dict[str, list[BlockTime]]:
    """Kinds of each block, blocks in the order of the data flow, kinds in that of a bar."""
    found: dict[str, list[BlockTime]] = {name: [] for name in derived.blocks(engine)}
    for block in engine.blocks:
        found[block.block].append(block)
    return {name: sorted(parts, key=_order) for name, parts in found.items()}


def _order(block: BlockTime) -> int:
    return KINDS.index(block.kind) if block.kind in KINDS else len(KINDS)


def hue(kind: str) -> str:
    return f"k{KINDS.index(kind) if kind in KINDS else len(KINDS) - 1}"


def stages(engine: EngineResult, longest: float, name: str) -> Markup:
    """One bar a block, one piece a kind of work; the tick is the block's floor.

    longest: ms that the axis must hold, the same for every engine so that bars compare.
    """
    blocks = by_block(engine)
    deep = 19.0
    height = 10 + deep * len(blocks) + BOTTOM
    left = 70.0
    x = svg.linear([longest], left, WIDTH - 46)
    drawn: list[Markup] = []
    for index, (block, parts) in enumerate(blocks.items()):
        top = 10 + deep * index
        drawn.append(svg.text(0, top + 12, words.shorten(block, 10), kind="label"))
        at = 0.0
        for part in parts:
            said = f"{block}, {part.kind}: {three(part.ms)} ms" + (
                f", floor {three(part.floor_ms)} ms" if part.floor_ms else ""
            )
            wide = x(at + part.ms) - x(at)
            drawn.append(svg.rectangle(x(at), top + 2, wide, deep - 6, f"bar {hue(part.kind)}",
                                       said))  # fmt: skip
            at += part.ms
        floor = sum(part.floor_ms for part in parts)
        if floor:
            for kind in ("floor edge", "floor"):  # the edge keeps it apart from the pieces
                drawn.append(svg.line(x(floor), top, x(floor), top + deep - 2, kind))
        drawn.append(svg.text(x(max(at, floor)) + 6, top + 12, three(at), kind="figure"))
    return svg.figure(
        name,
        f"Time per block, {engine.label}",
        "; ".join(f"{block} {three(sum(p.ms for p in parts))} ms"
                  for block, parts in blocks.items()),
        WIDTH,
        height,
        svg.bottom_axis(x, 10, height - BOTTOM, "ms", tick),
        drawn,
    )  # fmt: skip


def roofline(engine: EngineResult, ceilings: Ceilings, look: Look, name: str) -> Markup | None:
    """Each block's GFLOP/s over its operations per byte, under what the machine reaches.

    None where nothing was counted.
    """
    found = {
        block: (
            sum(part.flops for part in parts),
            sum(part.bytes for part in parts),
            sum(part.ms for part in parts),
        )
        for block, parts in by_block(engine).items()
    }
    places = {
        block: (flops / moved, flops / (ms * 1e6))
        for block, (flops, moved, ms) in found.items()
        if flops > 0 and moved > 0 and ms > 0
    }
    peaks = {kind: peak for kind, peak in ceilings.gemm_gflops.items() if peak > 0}
    if not places or not peaks or ceilings.copy_gb_per_s <= 0:
        return None
    height = 290.0
    ridges = [peak / ceilings.copy_gb_per_s for peak in peaks.values()]
    x = svg.logarithmic([*ridges, *(at for at, _ in places.values())], LEFT, WIDTH - RIGHT, 1.8)
    y = svg.logarithmic(
        [*peaks.values(), *(rate for _, rate in places.values())], height - BOTTOM, TOP, 1.8
    )
    roofs: list[Markup] = []
    written: list[svg.Box] = []
    for kind, peak in peaks.items():
        ridge = peak / ceilings.copy_gb_per_s
        slope = max(x.low, y.low / ceilings.copy_gb_per_s)
        corners = [(slope, slope * ceilings.copy_gb_per_s), (ridge, peak), (x.high, peak)]
        own = "roof own" if kind == engine.precision else "roof"
        said = f"{kind} {three(peak)} GFLOP/s"
        wide = svg.CHARACTER * len(said)
        written += [
            (WIDTH - RIGHT - wide, y(peak) - 17, wide, 19),
            (x(ridge), y(peak) - 2, WIDTH - x(ridge), 4),
        ]
        roofs += [
            svg.polyline([(x(at), y(rate)) for at, rate in corners], own),
            svg.text(WIDTH - RIGHT, y(peak) - 5, said, "end", "figure"),
        ]
    marks = [
        svg.marker(look, x(at), y(rate), f"{block}: {three(rate)} GFLOP/s, {three(at)} FLOP/byte")
        for block, (at, rate) in places.items()
    ]
    names = [(x(at), y(rate), block) for block, (at, rate) in places.items()]
    return svg.figure(
        name,
        f"Roofline, {engine.label}",
        f"Copy {three(ceilings.copy_gb_per_s)} GB/s; "
        + "; ".join(f"{block} {three(rate)} GFLOP/s" for block, (_, rate) in places.items()),
        WIDTH,
        height,
        svg.bottom_axis(x, TOP, height - BOTTOM, "FLOP per byte", tick),
        svg.left_axis(y, LEFT, WIDTH - RIGHT, "GFLOP/s", tick),
        roofs,
        marks,
        svg.labels(names, (LEFT, TOP, WIDTH - LEFT - 2, height - BOTTOM - TOP), also=written),
    )


def reached(engine: EngineResult) -> dict[str, float]:
    """Block -> floor / time, where a floor is known: 1 is as fast as the machine can."""
    found = {}
    for block, parts in by_block(engine).items():
        ms, floor = sum(part.ms for part in parts), sum(part.floor_ms for part in parts)
        if ms > 0 and floor > 0:
            found[block] = floor / ms
    return found


def shade(value: float, low: float, high: float) -> int:
    """Step of a heat map on a logarithmic scale; `low` and below is 0, `high` the darkest."""
    if value <= 0 or value <= low or high <= low:
        return 0
    part = math.log(value / low) / math.log(high / low)
    return min(SHADES - 1, int(part * SHADES))


def extremes(values: Mapping[tuple[str, str], float]) -> tuple[float, float]:
    """Least and largest positive value; (1, 1) where there is none."""
    positive = [value for value in values.values() if value > 0]
    return (min(positive), max(positive)) if positive else (1.0, 1.0)
