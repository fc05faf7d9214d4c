"""Time of every kernel of ONNX Runtime, told by its profiler, with the nodes it was made from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.engine.executed import WARM_UP, Executed, Kernel, durations, over_runs
from rest_deploy.engine.onnxruntime import INTEGER_KERNELS, original_name
from rest_deploy.engine.onnxruntime_session import open_session, reason
from rest_deploy.engine.placement import read_times
from rest_deploy.engine.providers import DEFAULTS
from rest_deploy.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

INSERTED_CAST = "InsertedPrecisionFreeCast_"
"""Begins the name of what was fused with a cast that ONNX Runtime put in for a 16-bit graph."""


def profile(
    path: Path,
    images: npt.NDArray[np.generic],
    *,
    threads: int | None = None,
    seconds: float = 3.0,
) -> Executed:
    """Run `path` on `images`, as it takes them, on the CPU, with the profiler and then without.

    Raises `ArtifactError` for a file that does not load or run, `VerificationError` for a profile
    that tells nothing.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session = open_session(
            path, "cpu", DEFAULTS, threads=threads,
            profile=Path(folder) / "profile", optimized=optimized,
        )  # fmt: skip
        feeds = {session.get_inputs()[0].name: images}

        def run() -> None:
            session.run(None, feeds)

        try:
            times = durations(run, seconds / 2)
            text = Path(session.end_profiling()).read_text(encoding="utf-8")
            # The same session: the threads of a second one would spin beside it.
            without = durations(run, seconds / 2)
        except Exception as error:  # its exception classes share no public base
            raise ArtifactError(f"ONNX Runtime cannot run {path}: {reason(error)}") from error
        graph = onnx.load(optimized, load_external_data=False).graph
    runs = read_times(text, WARM_UP + len(times))[WARM_UP:]
    original = onnx.load(path, load_external_data=False).graph
    return Executed(
        backend="onnxruntime/cpu",
        kernels=kernels_of(graph, original, over_runs(runs)),
        runs=len(times),
        profiled_ms=float(np.median(times)),
        plain_ms=float(np.median(without)),
    )


def kernels_of(
    optimized: onnx.GraphProto, original: onnx.GraphProto, times: list[tuple[str, float, float]]
) -> tuple[Kernel, ...]:
    """times: (name, median, least) of the nodes of `optimized`."""
    readers: dict[str, dict[str, None]] = {}
    for node in optimized.node:
        for name in node.input:
            readers.setdefault(name, {})[node.name] = None
    nodes = {node.name: node for node in optimized.node}
    parts = parts_of(optimized, original)
    found = []
    for index, (name, median, least) in enumerate(times):
        node = nodes.get(name)
        if node is None:  # of a function that was inlined later: what runs next is its reader
            operator, after = (
                "",
                {following: None for following, *_ in times[index + 1 : index + 2]},
            )
        else:
            operator = node.op_type
            after = {r: None for out in node.output for r in readers.get(out, ())}
        found.append(
            Kernel(
                name=name,
                operator=operator,
                # Its CPU kernels compute 16-bit graphs in float32, between casts.
                precision="int8" if operator in INTEGER_KERNELS else "fp32",
                parts=parts.get(name, ()),
                readers=tuple(after),
                ms=median,
                best_ms=least,
            )
        )
    return tuple(found)


def parts_of(
    optimized: onnx.GraphProto, original: onnx.GraphProto
) -> Mapping[str, tuple[str, ...]]:
    """Node of the optimized graph -> nodes of the file: those it is called after, and, where none
    is called after them, those whose result it makes (a fused node has a name of its own)."""
    names = {node.name for node in original.node}
    makers = {output: node for node in original.node for output in node.output}
    found: dict[str, tuple[str, ...]] = {}
    for node in optimized.node:
        own = node.name.removeprefix(INSERTED_CAST)
        for name in (own, original_name(own, makers)):
            if name in names:
                found[node.name] = (name,)
                break
    claimed = {name for parts in found.values() for name in parts}
    for node in optimized.node:
        if node.name in found:
            continue
        made = [makers[output].name for output in node.output if output in makers]
        found[node.name] = tuple(name for name in made if name not in claimed)
    return found
