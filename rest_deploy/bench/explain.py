"""Where the time of one engine goes: profiled, told block by block, held against the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rest_deploy.artifact import read_sidecar
from rest_deploy.bench import roofline
from rest_deploy.bench.record import BlockTime, Ceilings
from rest_deploy.contracts import SMALLEST_SIDE, Dims, HostBackend, Struct
from rest_deploy.engine import onnxruntime_profile, openvino_profile
from rest_deploy.engine.executed import Executed
from rest_deploy.engine.openvino import Inference, check_bf16
from rest_deploy.errors import ArtifactError, InputError, ShapeError, require
from rest_deploy.layout import layout_of_type
from rest_deploy.runtime.backend import backend_for, inference_precision

if TYPE_CHECKING:
    from rest_deploy.graph.work import Work

SECONDS = 3.0
"""Of runs, half of them with the profiler."""

COSTLIEST = 10

MOST_UNOWNED = 0.01
"""Share of the FLOPs that may be missed in the profile without a warning."""

STEADY = 1.3
"""A run without the profiler over the sum of its kernels: above this, something else took time."""


class LayerTime(Struct, frozen=True):
    """One kernel; see `roofline.Layer`, which is not stored."""

    name: str
    operator: str
    block: str
    kind: str
    precision: str
    ms: float
    flops: float
    bytes: float
    floor_ms: float


class Explained(Struct, frozen=True):
    """One engine at one shape. kernel_ms: sum of the kernels' medians; profiled_ms: median from
    call to return in the same runs; plain_ms: without the profiler. nowhere: share of kernel_ms
    that belongs to no block. ceilings: None where they were not measured."""

    model: str
    backend: str
    batch: int
    height: int
    width: int
    threads: int
    runs: int
    kernel_ms: float
    profiled_ms: float
    plain_ms: float
    nowhere: float
    blocks: tuple[BlockTime, ...]
    costliest: tuple[LayerTime, ...]
    ceilings: Ceilings | None = None
    warnings: tuple[str, ...] = ()


def explain(
    file: Path,
    shape: Dims,
    threads: int | None = None,
    *,
    backend: HostBackend | None = None,
    ceilings: Ceilings | None = None,
    seconds: float = SECONDS,
) -> tuple[BlockTime, ...]:
    """Time, FLOPs, bytes and floor of each block and kind of one engine; see `examine`."""
    return examine(file, shape, threads, backend=backend, ceilings=ceilings, seconds=seconds).blocks


def examine(
    file: Path,
    shape: Dims,
    threads: int | None = None,
    *,
    backend: HostBackend | None = None,
    ceilings: Ceilings | None = None,
    seconds: float = SECONDS,
) -> Explained:
    """Profile an ONNX file on a batch of noise of `shape` (batch, 3, height, width).

    backend: None for the one the file was built for, else ONNX Runtime. ceilings: without them
    `floor_ms` is 0.
    FLOPs and bytes are 0, with a warning, for a graph whose shapes cannot be inferred.
    Raises `ArtifactError` (missing, damaged, an engine of a GPU), `ShapeError`,
    `MissingDependencyError`, `VerificationError` (a profile that tells nothing).
    """
    source = opened(file, shape, backend)
    executed = _profile(source, shape, threads, seconds)
    found = roofline.layers(executed.kernels, source.works, ceilings)
    blocks = roofline.by_block(found)
    lost = sum(time.ms for time in blocks if time.block == roofline.NOWHERE)
    costliest = sorted(found, key=lambda layer: layer.ms, reverse=True)[:COSTLIEST]
    return Explained(
        model=str(file),
        backend=executed.backend,
        batch=shape[0],
        height=shape[2],
        width=shape[3],
        threads=threads or 0,
        runs=executed.runs,
        kernel_ms=executed.kernel_ms,
        profiled_ms=executed.profiled_ms,
        plain_ms=executed.plain_ms,
        nowhere=lost / executed.kernel_ms if executed.kernel_ms else 0.0,
        blocks=blocks,
        costliest=tuple(LayerTime(**vars(layer)) for layer in costliest),
        ceilings=ceilings,
        warnings=_warnings(executed, source, blocks),
    )


@dataclass(frozen=True)
class Source:
    """A file that can be profiled. inference: of OpenVINO's float layers; works: counted nodes;
    uncounted: why there are none."""

    file: Path
    runtime: HostBackend
    inference: Inference
    dtype: np.dtype[np.generic]
    works: tuple[Work, ...]
    uncounted: str


def opened(file: Path, shape: Dims, backend: HostBackend | None = None) -> Source:
    """Everything that `examine` finds out before it runs the file; raises what it does."""
    if not file.is_file():
        raise ArtifactError(f"no such model: {file}", hint="rest-deploy export --variant lite")
    if file.suffix != ".onnx":
        raise ArtifactError(
            f"{file} has the suffix {file.suffix!r}; expected .onnx: layers are timed on the CPU, "
            "in ONNX Runtime and OpenVINO",
            hint="trtexec --loadEngine=FILE --dumpProfile times the layers of a TensorRT engine",
        )
    if shape[0] < 1 or shape[1] != 3 or min(shape[2:]) < SMALLEST_SIDE:
        raise ShapeError(
            f"got the shape {shape}; expected (batch, 3, height, width) with height and width of "
            f"at least {SMALLEST_SIDE}"
        )
    require("onnx", "export")
    import onnx

    from rest_deploy.graph.work import count

    sidecar = read_sidecar(file)
    built = sidecar.build if sidecar else None
    if built is not None and built.provider not in ("", "cpu"):
        raise InputError(
            f"{file} was built for ONNX Runtime's {built.provider} provider; layers are timed on "
            "the CPU only",
            hint="rest-deploy build-engine --backend onnxruntime --provider cpu",
        )
    runtime = backend_for(sidecar, backend, None)
    inference = inference_precision(built)
    if runtime == "openvino" and inference == "bf16":
        check_bf16()
    try:
        model = onnx.load(file)
    except Exception as error:  # protobuf's classes share no public base
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{file} is not an ONNX model: {reason}") from error
    if not model.graph.input:
        raise ArtifactError(f"{file} has no input; expected one, a batch of images")
    try:
        works, uncounted = count(model, shape), ""
    except ArtifactError as error:  # of another tool: its times can be told all the same
        works, uncounted = (), error.message
    number = model.graph.input[0].type.tensor_type.elem_type
    return Source(
        file=file,
        runtime=runtime,
        inference=inference,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(number),
        works=works,
        uncounted=uncounted,
    )


def _profile(source: Source, shape: Dims, threads: int | None, seconds: float) -> Executed:
    images = layout_of_type(str(source.dtype)).noise(shape, str(source.dtype))
    if source.runtime == "openvino":
        return openvino_profile.profile(
            source.file, images, threads=threads, seconds=seconds, inference=source.inference
        )
    return onnxruntime_profile.profile(source.file, images, threads=threads, seconds=seconds)


def _warnings(executed: Executed, source: Source, blocks: tuple[BlockTime, ...]) -> tuple[str, ...]:
    warnings = []
    if executed.plain_ms > STEADY * executed.kernel_ms:
        warnings.append(
            f"the kernels add up to {executed.kernel_ms:.2f} ms, a run takes "
            f"{executed.plain_ms:.2f} ms: other load on this machine, or time between kernels"
        )
    if source.uncounted:
        warnings.append(
            f"neither FLOPs nor bytes are known: {source.uncounted}; blocks are told by the names "
            "that rest-deploy export gives"
        )
    unowned = roofline.unowned_flops(executed.kernels, source.works)
    if unowned > MOST_UNOWNED:
        warnings.append(
            f"{unowned:.1%} of the counted FLOPs are in no kernel that the profile names: "
            "fractions of the ceiling are too low"
        )
    high = roofline.above(blocks)
    if high:
        named = ", ".join(
            f"{time.block} {time.kind} {time.floor_ms / time.ms:.1f} times" for time in high[:4]
        )
        more = f" and {len(high) - 4} more" if len(high) > 4 else ""
        warnings.append(
            f"faster than the measured ceiling: {named}{more}; the ceiling was measured too low "
            "(other load?), or the engine does less than the graph asks for"
        )
    return tuple(warnings)
