"""How near an engine comes to what the machine can do, kernel by kernel.

The roofline of Williams, Waterman and Patterson (2009): no kernel takes less time than its FLOPs at
the rate of the best GEMM or its bytes at the rate of a copy, whichever is more. Both rates are
measured (`ceilings.py`), FLOPs and bytes are counted (`graph/work.py`), times are the profiler's.
Pure functions; nothing here runs an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rest_deploy.bench.record import BlockTime, Ceilings, Growth, Measurement
from rest_deploy.engine.executed import Kernel
from rest_deploy.errors import InputError

if TYPE_CHECKING:
    import onnx

    from rest_deploy.contracts import Dims
    from rest_deploy.graph.work import Work

NOWHERE = "other"
"""The block of what belongs to none."""

TOLERANCE = 1.05
"""A rate up to this much above its ceiling is the noise of the two measurements."""


@dataclass(frozen=True)
class Layer:
    """One kernel with its place and its work. name: after the node of the file that it computes,
    its own where it computes none; block and kind: as in `BlockTime`."""

    name: str
    operator: str
    block: str
    kind: str
    precision: str
    ms: float
    flops: float
    bytes: float
    floor_ms: float


def layers(
    kernels: Sequence[Kernel], works: Sequence[Work], ceilings: Ceilings | None = None
) -> tuple[Layer, ...]:
    """Every kernel that took time, with the work of all nodes it computes.

    works: of the file that the engine was made from, at the shape that was measured.
    """
    from rest_deploy.graph.roles import KINDS, kind
    from rest_deploy.graph.work import joined

    kernels = _named_by_node(kernels, works)
    owned = owners(kernels, works)
    blocks = _blocks(kernels, {work.node: work.part for work in works})
    known = {work.node: work.kind for work in works}
    found = []
    for kernel in kernels:
        if kernel.ms <= 0:
            continue
        own = owned.get(kernel.name, [])
        total = joined(own)
        named = [part for part in kernel.parts if part in known]
        products = [work.node for work in own if work.flops]
        kinds = [known[node] for node in (*named, *products)]
        found.append(
            Layer(
                name=next(iter(products[-1:] + named), kernel.name),
                operator=kernel.operator,
                block=blocks[kernel.name],
                kind=min(kinds, key=KINDS.index) if kinds else kind("", kernel.operator),
                precision=kernel.precision,
                ms=kernel.ms,
                flops=total.flops,
                bytes=total.bytes,
                floor_ms=floor_ms(total.flops, total.bytes, kernel.precision, ceilings),
            )
        )
    return tuple(found)


def owners(kernels: Sequence[Kernel], works: Sequence[Work]) -> dict[str, list[Work]]:
    """Name of a kernel -> the nodes it computes: those it names, and those that no kernel names
    and whose result it is the first to read (an Add before the GELU it was fused with). Kernels
    that took no time, such as transposed weights, own nothing."""
    owner: dict[str, str] = {}
    for kernel in _named_by_node(kernels, works):
        for part in kernel.parts if kernel.ms > 0 else ():
            owner.setdefault(part, kernel.name)
    for work in reversed(works):
        if work.node not in owner:
            after = next((owner[name] for name in work.readers if name in owner), None)
            if after is not None:
                owner[work.node] = after
    found: dict[str, list[Work]] = {}
    for work in works:
        if work.node in owner:
            found.setdefault(owner[work.node], []).append(work)
    return found


def unowned_flops(kernels: Sequence[Kernel], works: Sequence[Work]) -> float:
    """Share of the counted FLOPs that no kernel is known to compute."""
    total = sum(work.flops for work in works)
    owned = sum(work.flops for each in owners(kernels, works).values() for work in each)
    return 1 - owned / total if total else 0.0


def by_block(found: Iterable[Layer]) -> tuple[BlockTime, ...]:
    """Summed per block and kind, blocks in the order of the network."""
    from rest_deploy.graph.roles import KINDS

    merged = _merged((layer.block, layer.kind, layer) for layer in found)
    return tuple(sorted(merged, key=lambda time: (_order(time.block), KINDS.index(time.kind))))


def floor_ms(flops: float, moved: float, precision: str, ceilings: Ceilings | None) -> float:
    """The least time for that many FLOPs and bytes; 0 without ceilings. For a precision that has
    no ceiling, that of the bytes alone."""
    if ceilings is None:
        return 0.0
    gflops = ceilings.gemm_gflops.get(precision)
    computing = flops / gflops / 1e6 if gflops else 0.0
    return max(computing, moved / copy_rate(moved, ceilings) / 1e6)


def copy_rate(moved: float, ceilings: Ceilings) -> float:
    """GB/s that a copy of at least so many bytes reaches: small ones stay in a cache."""
    cached = [rate for size, rate in ceilings.copies if size >= moved]
    return max([ceilings.copy_gb_per_s, *cached])


def fraction(times: Iterable[BlockTime]) -> float:
    """floor / measured of all of them together: 1 is as fast as the machine can be."""
    found = tuple(times)
    total = sum(time.ms for time in found)
    if total <= 0:
        raise InputError("there is no measured time to compare with a floor")
    return sum(time.floor_ms for time in found) / total


def above(times: Iterable[BlockTime]) -> tuple[BlockTime, ...]:
    """Those faster than their floor: the ceiling was measured too low, which is told."""
    return tuple(time for time in times if time.floor_ms > TOLERANCE * time.ms > 0)


def stage(block: str) -> str:
    """ "stage1.0" -> "stage1"; other blocks are their own."""
    return block.partition(".")[0]


def by_stage(times: Iterable[BlockTime]) -> tuple[BlockTime, ...]:
    """Blocks of one stage together."""
    return _merged((stage(time.block), time.kind, time) for time in times)


def by_kind(times: Iterable[BlockTime]) -> tuple[BlockTime, ...]:
    """All blocks together, under the block "all"."""
    return _merged(("all", time.kind, time) for time in times)


def growth(
    engine: str, model: onnx.ModelProto, measurements: Iterable[Measurement]
) -> tuple[Growth, ...]:
    """What the counted cost says of an engine's times at several shapes.

    model: what was measured, or the float model of the same function. Attention grows with the
    fourth power of the side, the rest with its square. A measured ratio below that of FLOPs and
    bytes: the small shape does not fill the machine; above both: the large one has left a cache.
    Raises `InputError` for times that are none.
    """
    from rest_deploy.graph.work import count

    alone = [found for found in measurements if found.mode == "isolated"]
    for found in alone:
        if not 0 < found.host.median < float("inf"):
            raise InputError(f"a time must be positive and finite, got {found.host.median} ms")
    shapes: dict[str, Dims] = {m.shape: (m.batch, 3, m.height, m.width) for m in alone}
    if len(shapes) < 2:
        return ()
    works = {shape: count(model, dims) for shape, dims in shapes.items()}
    flops = {shape: sum(work.flops for work in found) for shape, found in works.items()}
    bytes_ = {shape: sum(work.bytes for work in found) for shape, found in works.items()}
    rows = []
    for threads in dict.fromkeys(found.threads for found in alone):
        those = sorted((m for m in alone if m.threads == threads), key=lambda m: flops[m.shape])
        rows += [
            Growth(
                engine=engine,
                small=those[0].shape,
                large=large.shape,
                measured=large.host.median / those[0].host.median,
                flops=flops[large.shape] / flops[those[0].shape],
                bytes=bytes_[large.shape] / bytes_[those[0].shape],
                threads=threads,
            )
            for large in those[1:]
        ]
    return tuple(rows)


def _named_by_node(kernels: Sequence[Kernel], works: Sequence[Work]) -> list[Kernel]:
    """Parts called after the tensor that a node makes, which OpenVINO does with the last one."""
    nodes = {work.node for work in works}
    makers = {name: work.node for work in works for name in work.writes}
    return [
        replace(
            kernel,
            parts=tuple(name if name in nodes else makers.get(name, name) for name in kernel.parts),
        )
        for kernel in kernels
    ]


def _merged(times: Iterable[tuple[str, str, BlockTime | Layer]]) -> tuple[BlockTime, ...]:
    """Summed by the block and the kind that each comes with."""
    groups: dict[tuple[str, str], list[BlockTime | Layer]] = {}
    for block, kind, time in times:
        groups.setdefault((block, kind), []).append(time)
    return tuple(
        BlockTime(
            block=block,
            kind=kind,
            ms=sum(time.ms for time in group),
            flops=sum(time.flops for time in group),
            bytes=sum(time.bytes for time in group),
            floor_ms=sum(time.floor_ms for time in group),
        )
        for (block, kind), group in groups.items()
    )


def _blocks(kernels: Sequence[Kernel], parts: Mapping[str, str]) -> dict[str, str]:
    """Of every kernel: that of the nodes it computes; else of the next kernel that reads it and
    has one (a change of layout belongs to what needs it)."""
    graph = {kernel.name: kernel for kernel in kernels}
    found: dict[str, str] = {}

    def own(kernel: Kernel) -> str:
        return next((parts[part] for part in kernel.parts if part in parts), NOWHERE)

    for kernel in kernels:
        seen, waiting = {kernel.name}, [kernel]
        block = NOWHERE
        while waiting and block == NOWHERE:
            here = waiting.pop(0)
            block = own(here)
            after = [graph[name] for name in here.readers if name in graph and name not in seen]
            seen.update(reader.name for reader in after)
            waiting += after
        found[kernel.name] = block
    return found


def _order(block: str) -> tuple[int, str, int]:
    """Stem, then patch embedding and stage of each number, head, the rest."""
    name, _, number = block.partition(".")
    if block == "stem":
        return (0, "", 0)
    for word, rank in (("patch", 0), ("stage", 1)):
        if name.startswith(word) and name[len(word) :].isdigit():
            return (2 * int(name[len(word) :]) + rank, "", int(number or 0))
    return (98 if block == "head" else 99, block, 0)
