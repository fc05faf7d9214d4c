"""Time of every kernel of OpenVINO on a CPU, with the nodes of the file it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from rest_deploy.engine.executed import WARM_UP, Executed, Kernel, durations, over_runs
from rest_deploy.errors import ArtifactError, require

if TYPE_CHECKING:
    import openvino

PRECISIONS = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}


def profile(
    path: Path,
    images: npt.NDArray[np.generic],
    *,
    threads: int | None = None,
    seconds: float = 3.0,
    inference: Literal["f32", "bf16"] = "f32",
) -> Executed:
    """Run `path` on `images` (N, 3, H, W), with counters and then without.

    inference: what float layers compute in; always set, OpenVINO would take bf16 by itself.
    Raises `ArtifactError`, `MissingDependencyError`, `VerificationError`.
    """
    require("openvino", "openvino")
    import openvino as ov

    settings: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": inference,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core, seen = ov.Core(), []
    try:
        model = core.read_model(path)
        counted = core.compile_model(model, "CPU", settings | {"PERF_COUNT": True})
        plain = _call(core.compile_model(model, "CPU", settings), images)
        request = counted.create_infer_request()

        def profiled() -> None:
            request.infer({0: images}, share_inputs=True)
            seen.append(request.get_profiling_info())

        times = durations(profiled, seconds / 2)
        without = durations(plain, seconds / 2)
    except Exception as error:  # its exception classes share no public base
        raise ArtifactError(
            f"OpenVINO cannot run {path}: {' '.join(str(error).split())[:300]}"
        ) from error
    runs = [
        [(layer.node_name, layer.real_time.total_seconds() * 1e3) for layer in run]
        for run in seen[WARM_UP:]
    ]
    executed = [operation(op) for op in counted.get_runtime_model().get_ordered_ops()]
    return Executed(
        backend="openvino/cpu",
        kernels=kernels_of(executed, over_runs(runs)),
        runs=len(times),
        profiled_ms=float(np.median(times)),
        plain_ms=float(np.median(without)),
    )


def _call(
    compiled: openvino.CompiledModel, images: npt.NDArray[np.generic]
) -> Callable[[], object]:
    request = compiled.create_infer_request()
    return lambda: request.infer({0: images}, share_inputs=True)


def operation(op: openvino.Node) -> Kernel:
    """One of the graph that OpenVINO executes; constants are part of it."""
    info = {key: str(value.astype(str)) for key, value in op.get_rt_info().items()}
    readers = (port.get_node() for output in op.outputs() for port in output.get_target_inputs())
    return Kernel(
        name=op.get_friendly_name(),
        operator=info.get("layerType", ""),
        precision=PRECISIONS.get(info.get("runtimePrecision", ""), ""),
        parts=tuple(name for name in info.get("originalLayersNames", "").split(",") if name),
        readers=tuple(dict.fromkeys(reader.get_friendly_name() for reader in readers)),
    )


def kernels_of(
    executed: Iterable[Kernel], times: Iterable[tuple[str, float, float]]
) -> tuple[Kernel, ...]:
    """The executed graph with times: (name, median, least).

    What OpenVINO made of one node goes by its name ("x.MatMul/DequantizationMultiply"): the node's
    work is that of the operation called "x.MatMul" where there is one.
    """
    graph = {kernel.name: kernel for kernel in executed}
    exact = {name for kernel in graph.values() for name in kernel.parts if "/" not in name}
    clocked = {name: (median, least) for name, median, least in times}
    found = []
    for name in dict.fromkeys((*graph, *clocked)):
        kernel = graph.get(name, Kernel(name, "", "", (), ()))
        if kernel.operator == "Const":
            continue
        ms, best_ms = clocked.get(name, (0.0, 0.0))
        parts = dict.fromkeys(
            part.split("/")[0]
            for part in kernel.parts
            if "/" not in part or part.split("/")[0] not in exact
        )
        found.append(
            Kernel(name, kernel.operator, kernel.precision, tuple(parts), kernel.readers,
                   ms, best_ms)
        )  # fmt: skip
    return tuple(found)
