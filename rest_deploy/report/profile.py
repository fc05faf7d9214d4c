"""Where an engine's time goes, as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rest_deploy.bench import roofline
from rest_deploy.bench.explain import Explained
from rest_deploy.bench.record import BlockTime, Ceilings
from rest_deploy.report.text import WIDTH, table

KINDS = ("gemm", "conv", "attention", "norm", "other")

LONGEST = 38
"""Characters of a layer's name."""

NONE = "-"


def profile(found: Explained) -> str:
    several = "s" if found.threads > 1 else ""
    threads = f"{found.threads} thread{several}" if found.threads else "all cores"
    lines = [
        f"{found.model} on {found.backend}, {found.batch}x3x{found.height}x{found.width}, "
        f"{threads}, median of {found.runs} runs",
        "",
        breakdown(found.blocks),
        "",
        "of ceiling: least time this machine needs for the FLOPs and bytes, over the measured time",
        "",
        costliest(found),
        "",
        *sums(found),
    ]
    if found.ceilings is not None:
        lines.append(limits(found.ceilings))
    for warning in found.warnings:
        lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def breakdown(blocks: Sequence[BlockTime]) -> str:
    """Stages down, kinds across in ms; at the right and below what each row and column comes to."""
    whole = sum(time.ms for time in blocks)
    stages = roofline.by_stage(blocks)
    kinds = [kind for kind in KINDS if any(time.kind == kind for time in stages)]
    cells = {(time.block, time.kind): f"{time.ms:.2f}" for time in stages}
    names = dict.fromkeys(time.block for time in stages)
    columns = [[time for time in stages if time.kind == kind] for kind in kinds]
    rows = [
        (
            name,
            *(cells.get((name, kind), NONE) for kind in kinds),
            *_figures([time for time in stages if time.block == name], whole),
        )
        for name in names
    ]
    rows.append(
        ("all", *(f"{sum(time.ms for time in column):.2f}" for column in columns),
         *_figures(stages, whole))
    )  # fmt: skip
    titles = ("ms", "share", "GFLOP/s", "of ceiling")
    for index, title in enumerate(titles[1:], start=1):
        values = [_figures(column, whole)[index] for column in columns]
        rows.append((title, *values, *[""] * len(titles)))
    return table(("", *kinds, *titles), rows)


def costliest(found: Explained) -> str:
    rows = [
        (
            _shortened(layer.name),
            layer.operator[:18],
            layer.precision,
            f"{layer.ms:.3f}",
            _share(layer.ms, found.kernel_ms),
            _speed(layer.flops, layer.ms),
            _of_ceiling(layer.floor_ms, layer.ms),
        )
        for layer in found.costliest
    ]
    header = ("costliest", "operator", "in", "ms", "share", "GFLOP/s", "of ceiling")
    return table(header, rows, left=3)


def sums(found: Explained) -> list[str]:
    return [
        f"sum of the kernels {found.kernel_ms:.2f} ms, {found.kernel_ms / found.plain_ms:.0%} of "
        f"the {found.plain_ms:.2f} ms that a run takes without the profiler",
        f"a run with the profiler {found.profiled_ms:.2f} ms; it makes small kernels look larger",
        f"in no block of the network: {found.nowhere:.1%} of the time",
    ]


def limits(ceilings: Ceilings) -> str:
    """What the machine was found to reach."""
    gemms = ", ".join(f"{name} {rate:.0f}" for name, rate in ceilings.gemm_gflops.items())
    copies = "".join(f"{moved / 2**20:.0f} MiB {rate:.0f}, " for moved, rate in ceilings.copies)
    return (
        f"ceilings: GEMM {gemms or 'none'} GFLOP/s{_without(ceilings)}; copy {copies}"
        f"from memory {ceilings.copy_gb_per_s:.0f} GB/s"
    )


def _without(ceilings: Ceilings) -> str:
    return f" (this machine has no {', '.join(ceilings.absent)} GEMM)" if ceilings.absent else ""


def _figures(times: Iterable[BlockTime], whole: float) -> tuple[str, str, str, str]:
    """ms, share, GFLOP/s, fraction of the ceiling."""
    found = list(times)
    ms = sum(time.ms for time in found)
    return (
        f"{ms:.2f}",
        _share(ms, whole),
        _speed(sum(time.flops for time in found), ms),
        _of_ceiling(sum(time.floor_ms for time in found), ms),
    )


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _share(ms: float, whole: float) -> str:
    return f"{ms / whole:.1%}" if whole > 0 else NONE


def _speed(flops: float, ms: float) -> str:
    return f"{flops / ms / 1e6:.1f}" if flops and ms > 0 else NONE


def _of_ceiling(floor_ms: float, ms: float) -> str:
    return f"{floor_ms / ms:.0%}" if floor_ms and ms > 0 else NONE
