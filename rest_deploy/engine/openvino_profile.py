"""Time of every kernel of OpenVINO on a CPU, with the nodes of the file it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Dims
from rest_deploy.engine.executed import WARM_UP, Executed, Kernel, durations, over_runs
from rest_deploy.engine.openvino import Inference, OpenVinoRunner, read_model
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
    inference: Inference = "f32",
) -> Executed:
    """Run `path` on `images`, as it takes them, with counters and then without.

    It is compiled for that one shape, as a session does for shapes that come often, but all cores
    work on one layer at a time: a session shares a batch out among them, which is a bit faster.
    inference: what float layers compute in; always set, OpenVINO would take bf16 by itself.
    Raises what `OpenVinoRunner` does, and `VerificationError`.
    """
    require("openvino", "openvino")
    import openvino as ov

    shape: Dims = images.shape
    plain = OpenVinoRunner(path, threads=threads, precision=inference, shape=shape)
    feeds = {plain.inputs[0].name: images}
    settings: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": inference,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    seen = []
    try:
        model = read_model(path)
        model.reshape(list(shape))
        counted = ov.Core().compile_model(model, "CPU", settings)
        request = counted.create_infer_request()

        def profiled() -> None:
            request.infer(feeds, share_inputs=True)
            seen.append(request.get_profiling_info())

        times = durations(profiled, seconds / 2)
        without = durations(lambda: plain.infer(feeds), seconds / 2)
    except RuntimeError as error:
        raise ArtifactError(
            f"OpenVINO cannot run {path}: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        plain.close()
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
