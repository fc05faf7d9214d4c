"""Exported model -> reduced-precision ONNX file or engine, proven before it gets its name."""

from __future__ import annotations

import shlex
import time
from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from rest_deploy.artifact import Sidecar, publish, sha256_file, staging
from rest_deploy.contracts import Build, GateResult, ModelMetadata, Precision, Struct
from rest_deploy.engine.backends import Choice, choose
from rest_deploy.errors import InputError, require
from rest_deploy.quant.table import CalibrationTable
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.calibrate import CalibrationReport, calibrate, given_table
from rest_deploy.verbs.gate import GATE_IMAGES, GateData, gate_data, reference_logits
from rest_deploy.verbs.progress import Counter, Progress, silent, step, uncounted
from rest_deploy.verbs.verify import open_export
from rest_deploy.verify import gate

if TYPE_CHECKING:
    import onnx_ir as ir

    from rest_deploy.graph.precision import IoType

OVERFLOW_IMAGES = 8

GRAPH_ONLY = "onnx"
"""In a sidecar: no backend was built for; the file is for all of them."""


class BuildReport(Struct, frozen=True):
    """What `quantize` or `build-engine` did. `skipped`: role -> reason -> how many."""

    path: str
    metadata: ModelMetadata
    build: Build
    passed_over: tuple[tuple[str, str], ...]
    calibration: CalibrationReport | None
    skipped: dict[str, dict[str, int]]
    passes: dict[str, int]
    size_bytes: int
    source_bytes: int
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """The user's wishes, shared by `quantize` and `build-engine`."""

    precision: Precision
    data: Path | None = None
    recipe: str | None = None
    table: Path | None = None
    limit: int | None = None
    seed: int = 0
    io_type: IoType = "float32"
    gate: bool = True
    gate_data: Path | None = None
    gate_images: int = GATE_IMAGES
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Made:
    """A reduced-precision graph and how it came about.

    `proof`: the graph whose logits the gate looks at; `original`: the float graph whose weights
    were quantized.
    """

    model: ir.Model
    proof: ir.Model
    original: ir.Model | None
    calibration: CalibrationReport | None
    asked: dict[str, dict[str, int]]
    skipped: dict[str, dict[str, int]]
    passes: dict[str, int]


def build_engine(
    model: Path | None,
    request: Request,
    *,
    workspace: Path,
    backend: str = "auto",
    progress: Progress = silent,
    counter: Counter = uncounted,
) -> BuildReport:
    """Engine for one backend from an exported float model (None: the newest of the workspace).

    Raises `MissingDependencyError` (no such backend here), `VerificationError` (the accuracy gate),
    and what `calibrate` raises; then nothing is written but the calibration table.
    """
    choice = choose(backend, request.precision)
    return _build(model, request, workspace, choice, progress, counter)


def quantize(
    model: Path | None,
    request: Request,
    *,
    workspace: Path,
    progress: Progress = silent,
    counter: Counter = uncounted,
) -> BuildReport:
    """The ONNX file of that precision, for any backend; see `build_engine`."""
    return _build(model, request, workspace, None, progress, counter)


def _build(
    model: Path | None,
    request: Request,
    workspace: Path,
    choice: Choice | None,
    progress: Progress,
    counter: Counter,
) -> BuildReport:
    require("onnxruntime", "onnxruntime")
    require("onnx_ir", "export")
    import onnx_ir as ir

    started = time.monotonic()
    source = open_export(model, workspace)
    metadata = source.metadata
    data = gate_data(metadata, request.gate_data, request.gate_images) if request.gate else None
    made = _make(source, request, workspace, progress, counter)
    asked, passes = made.asked, dict(made.passes)
    name = source.path.name.removesuffix(".onnx")
    label = made.calibration.recipe.name if made.calibration else request.precision
    suffix = "" if choice is None else f".{choice.backend}"
    target = workspace / f"{name}.{label}{suffix}.onnx"
    warnings = []
    with staging(workspace) as folder:
        staged, proof = folder / target.name, folder / "proof.onnx"
        if choice is not None and choice.backend == "onnxruntime":
            from rest_deploy.graph.unsign import unsign_activations

            passes["unsign_activations"] = unsign_activations(made.model)
        ir.save(made.model, staged)
        if choice is not None:
            asked = _obtained(staged)
            warnings += _shortfall(request.precision, made.asked, asked, choice.backend)
        result = None
        if data is not None:
            if made.proof is not made.model:
                ir.save(made.proof, proof)
            with step(progress, f"compared with the reference on {len(data.images)} images"):
                used = proof if made.proof is not made.model else staged
                result = _judge(source, staged, used, made.original, data, request)
            gate.enforce(result, target.name)
        built = Build(
            precision=request.precision,
            backend=GRAPH_ONLY if choice is None else choice.backend,
            io_type=request.io_type,
            obtained=asked,
            source_sha256=sha256_file(source.path),
            recipe=made.calibration.recipe.name if made.calibration else "",
            table_sha256=made.calibration.table_sha256 if made.calibration else "",
            gate=result,
        )
        sidecar = Sidecar(
            schema=1,
            kind="onnx",
            file=target.name,
            sha256=sha256_file(staged),
            size_bytes=staged.stat().st_size,
            metadata=metadata,
            parity=None,
            passes=passes,
            command=_command(source.path, request, choice),
            build=built,
        )
        publish(staged, target, sidecar)
    if not request.gate:
        warnings.append("built without the accuracy gate (--no-gate); the sidecar says so")
    if request.gate and metadata.weights.kind == "fresh":
        warnings.append("fresh weights: the gate holds errors only, classes mean nothing")
    return BuildReport(
        path=str(target),
        metadata=metadata,
        build=built,
        passed_over=choice.passed_over if choice else (),
        calibration=made.calibration,
        skipped=made.skipped,
        passes=passes,
        size_bytes=sidecar.size_bytes,
        source_bytes=source.path.stat().st_size,
        seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


def _make(
    source: Session, request: Request, workspace: Path, progress: Progress, counter: Counter
) -> Made:
    import onnx_ir as ir

    from rest_deploy.quant.level import level

    if request.precision == "int8" or request.precision == "fp8":
        report, table = _table(source, request, workspace, counter)
        progress(f"calibrated on {report.images} images", report.seconds)
        return _quantized(source.path, report, table)
    model = ir.load(source.path)
    if request.precision == "fp32":
        return Made(model, model, None, None, _asked(model, "float"), {}, {})
    from rest_deploy.graph.precision import emulate, to_sixteen_bit

    passes = {"level": level(model)}
    if request.precision == "fp16" and request.gate:
        _check_overflow(model, source, request, workspace)
    types = to_sixteen_bit(model, request.precision, io_type=request.io_type)
    passes |= {f"nodes in {name}": count for name, count in types.items()}
    # The proof rounds after every operator, which a CPU backend without 16-bit kernels skips.
    # Not model.clone(): its values share their types with the original's.
    twin = ir.from_proto(ir.to_proto(model))
    emulate(twin)
    return Made(model, twin, None, None, _asked(model, request.precision), {}, passes)


def _quantized(path: Path, report: CalibrationReport, table: CalibrationTable) -> Made:
    from rest_deploy.quant.calibrate import prepared
    from rest_deploy.quant.calibrate import quantize as run

    model, placement = run(path, table)
    kind: str = table.recipe.format
    asked = {role: {kind: count} for role, count in placement.quantized.items()}
    skipped = {role: dict(reasons) for role, reasons in placement.skipped.items()}
    return Made(model, model, prepared(path, table), report, asked, skipped, {})


def _table(
    source: Session, request: Request, workspace: Path, counter: Counter
) -> tuple[CalibrationReport, CalibrationTable]:
    if request.table is not None:
        report, table = given_table(request.table, source.path)
    else:
        report, table = calibrate(
            source.path,
            workspace=workspace,
            data=request.data,
            recipe=request.recipe or request.precision,
            limit=request.limit,
            seed=request.seed,
            counter=counter,
        )
    if table.recipe.format != request.precision:
        raise InputError(
            f"the recipe {table.recipe.name!r} is for {table.recipe.format}, "
            f"{request.precision} was asked for",
            hint=f"--{table.recipe.format}, or another --recipe",
        )
    return report, table


def _check_overflow(model: ir.Model, source: Session, request: Request, workspace: Path) -> None:
    """Real images through the float graph: does anything leave FP16's range?"""
    import onnx_ir as ir

    from rest_deploy.graph.precision import beyond_fp16
    from rest_deploy.quant.observe import largest_values

    images = gate_data(source.metadata, request.gate_data, OVERFLOW_IMAGES).images
    with staging(workspace) as folder:
        ir.save(model, folder / "levelled.onnx")
        found = beyond_fp16(largest_values(folder / "levelled.onnx", images))
    if found:
        raise InputError(
            f"{len(found)} tensors leave FP16's range (65504) on real images: "
            f"{'; '.join(found[:3])}",
            hint="--bf16 has float32's range",
        )


def _judge(
    source: Session,
    staged: Path,
    proof: Path,
    original: ir.Model | None,
    data: GateData,
    request: Request,
) -> GateResult:
    metadata = source.metadata
    expected, name = reference_logits(source, data.images, request.checkpoint)
    engine = Session.open(proof, metadata=metadata) if proof != staged else Session.open(staged)
    actual = gate.logits(engine.run, data.images)
    if request.precision == "fp32":
        # No precision is given up: the bounds of an export.
        parity = metadata.card.parity
        bounds = msgspec.structs.replace(
            metadata.card.gate.fp16,
            relative_error=parity.relative_error,
            relative_error_fresh=parity.relative_error_fresh,
        )
    else:
        bounds = metadata.card.gate.of(request.precision)
    return gate.judge(
        np.asarray(expected),
        actual,
        bounds,
        fresh=metadata.weights.kind == "fresh",
        ranges=gate.range_use(staged, data.images[: gate.RANGE_IMAGES]),
        weights=gate.weight_errors(staged, original) if original is not None else None,
        labels=data.labels,
        reference_name=name,
        source=data.source,
    )


def _asked(model: ir.Model, kind: str) -> dict[str, dict[str, int]]:
    """Weight layers of a graph without Q/DQ, all of one kind."""
    return _by_role((node.name or "", kind) for node in model.graph
                    if node.op_type in {"MatMul", "Gemm", "Conv"})  # fmt: skip


def _obtained(path: Path) -> dict[str, dict[str, int]]:
    from rest_deploy.engine.onnxruntime import kernels

    return _by_role(kernels(path))


def _by_role(found: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    from rest_deploy.graph.roles import place

    roles: dict[str, Tally[str]] = {}
    for name, kind in found:
        here = place(name)
        if here is not None:
            roles.setdefault(here.role, Tally())[kind] += 1
    return {role: dict(counts) for role, counts in roles.items()}


def _shortfall(
    precision: Precision,
    asked: dict[str, dict[str, int]],
    obtained: dict[str, dict[str, int]],
    backend: str,
) -> list[str]:
    """Where the backend computes in another type than the file asks for."""
    if precision == "int8":
        missing = {
            role: f"{counts['int8'] - obtained.get(role, {}).get('int8', 0)} of {counts['int8']}"
            for role, counts in asked.items()
            if obtained.get(role, {}).get("int8", 0) < counts["int8"]
        }
        words = ", ".join(f"{role} {count}" for role, count in missing.items())
        return [f"{backend} computes these in float, after dequantizing: {words}"] if words else []
    if precision in ("fp16", "fp8"):
        return [f"{backend} on a CPU has no {precision} kernels: it computes in float32, no faster"]
    return []


def _command(model: Path, request: Request, choice: Choice | None) -> str:
    words = ["rest-deploy", "quantize" if choice is None else "build-engine", str(model)]
    words += [f"--{request.precision}"]
    if choice is not None:
        words += ["--backend", choice.backend]
    for option, value in (
        ("--calib-data", request.data), ("--recipe", request.recipe), ("--table", request.table),
        ("--limit", request.limit), ("--gate-data", request.gate_data),
    ):  # fmt: skip
        if value is not None:
            words += [option, str(value)]
    if request.io_type != "float32":
        words += ["--io-type", request.io_type]
    if not request.gate:
        words += ["--no-gate"]
    return shlex.join(words)
