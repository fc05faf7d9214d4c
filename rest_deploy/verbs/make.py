"""Exported graph + wishes -> the graph of another precision, in the form a backend runs best."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rest_deploy.artifact import staging
from rest_deploy.contracts import Precision, Rest, Sums
from rest_deploy.errors import InputError
from rest_deploy.quant.table import CalibrationTable
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.calibrate import CalibrationReport, Images, calibrate, given_table
from rest_deploy.verbs.gate import GATE_IMAGES, gate_data
from rest_deploy.verbs.progress import Counter, Progress
from rest_deploy.verify import gate

if TYPE_CHECKING:
    import onnx_ir as ir

    from rest_deploy.graph.precision import IoType, Sixteen
    from rest_deploy.graph.roles import Place

OVERFLOW_IMAGES = 8

TENSOR_CORES = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-nv-tensorrt-rtx")
"""Backends, some through ONNX Runtime, whose 8-bit graphs are FP16 where they are not quantized."""

Kinds = dict[str, dict[str, int]]
"""Role -> what its layers compute in, or why they were left -> how many."""


@dataclass(frozen=True)
class Request:
    """The user's wishes, shared by `quantize` and `build-engine`. `rest`: with 8 bits, None: see
    `rest_for`."""

    precision: Precision
    images: Images = field(default_factory=Images)
    recipe: str | None = None
    table: Path | None = None
    rest: Rest | None = None
    io_type: IoType = "float32"
    gate: bool = True
    gate_data: Path | None = None
    gate_images: int = GATE_IMAGES
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Made:
    """A reduced-precision graph and how it came about.

    `proof`: the graph whose logits the gate looks at; `original`: the float graph whose weights
    were quantized. `asked` and `skipped`: of the recipe; `float_places`: what `adapt` took out of
    it for the backend; `rest`: of an 8-bit graph, what the unquantized part computes in.
    """

    model: ir.Model
    proof: ir.Model
    asked: Kinds
    original: ir.Model | None = None
    calibration: CalibrationReport | None = None
    table: CalibrationTable | None = None
    skipped: Kinds = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    float_places: tuple[str, ...] = ()
    rest: Rest = "fp32"

    @property
    def sums(self) -> tuple[Sums, ...]:
        """Of an INT8 graph, which 8-bit sums are exact on every CPU."""
        if self.table is None or self.table.recipe.format != "int8":
            return ()
        from rest_deploy.quant import pairs

        return pairs.prove(self.model)


def rest_for(request: Request, backend: str | None) -> Rest:
    """What an 8-bit graph computes in where it is not quantized: FP16 for NVIDIA's builders, whose
    GPUs have tensor cores for it, float32 for CPUs and for a file whose target is not known.

    Raises `InputError` for 16 bits that a CPU does not compute in.
    """
    if request.precision not in ("int8", "fp8"):
        if request.rest is not None:
            raise InputError(f"--rest goes with --int8 or --fp8, not with --{request.precision}")
        return "fp32"
    if backend == "onnxruntime" and request.rest not in (None, "fp32"):
        raise InputError(
            f"onnxruntime on a CPU has no {request.rest} kernels",
            hint="--rest fp32, or --backend tensorrt-rtx",
        )
    if backend == "openvino" and request.rest == "fp16":
        raise InputError(
            "openvino on a CPU makes bf16 of fp16 without a word",
            hint="--rest bf16, or --rest fp32",
        )
    return request.rest or ("fp16" if backend in TENSOR_CORES else "fp32")


def make(
    source: Session,
    request: Request,
    rest: Rest,
    workspace: Path,
    progress: Progress,
    counter: Counter,
    *,
    typed: bool = True,
) -> Made:
    """typed: 16 bits are written into the graph; not for a backend that is told when it opens it.

    Raises what `calibrate` raises, and `InputError` for values that FP16 cannot hold."""
    import onnx_ir as ir

    from rest_deploy.quant.level import level

    if request.precision == "int8" or request.precision == "fp8":
        report, table = _table(source, request, workspace, counter)
        progress(f"calibrated on {report.images} images", report.seconds)
        made = _quantized(source.path, report, table)
        if rest == "fp32" or not typed:
            return replace(made, rest=rest)
        return _typed(made, rest, source, request)
    model = ir.load(source.path)
    if request.precision == "fp32" or not typed:
        kind = "float" if request.precision == "fp32" else request.precision
        return Made(model, model, _asked(model, kind))
    passes = {"level": level(model)}
    asked = _asked(model, request.precision)
    return _typed(Made(model, model, asked, passes=passes), request.precision, source, request)


def adapt(made: Made, source: Path, backend: str, workspace: Path) -> Made:
    """The form of it that `backend` runs best; on a CPU, INT8 only where it has kernels.

    A Q/DQ pair around a kernel that computes in float costs time and accuracy and gains nothing:
    such layers get their float weights back.
    """
    if backend not in ("onnxruntime", "openvino"):
        return made
    if made.calibration is None or made.table is None:
        return made
    from rest_deploy.quant.sensitivity import without

    passes = _unsigned(made.model, backend)
    floats = _without_kernels(made, backend, workspace)
    if not floats:
        return replace(made, passes=made.passes | passes)
    table = msgspec.structs.replace(made.table, recipe=without(made.table.recipe, floats))
    again = _quantized(source, made.calibration, table)
    passes = _unsigned(again.model, backend)
    skipped = dict(made.skipped)
    for role, counts in made.asked.items():
        left = counts["int8"] - again.asked.get(role, {}).get("int8", 0)
        if left:
            reason = f"no integer kernel in {backend}"
            skipped[role] = {**skipped.get(role, {}), reason: left}
    return replace(
        made,
        model=again.model,
        proof=again.model,
        original=again.original,
        skipped=skipped,
        passes=made.passes | passes,
        float_places=tuple(map(str, floats)),
    )


def obtained(path: Path) -> Kinds:
    """What ONNX Runtime's kernels compute in, for the graph that it makes of `path`."""
    return by_role(_kernels(path, "onnxruntime"))


def _kernels(path: Path, backend: str) -> list[tuple[str, str]]:
    if backend == "openvino":
        from rest_deploy.engine import openvino_kernels

        return openvino_kernels.kernels(path)
    from rest_deploy.engine.onnxruntime import kernels

    return kernels(path)


def _unsigned(model: ir.Model, backend: str) -> dict[str, int]:
    """OpenVINO takes signed activations as they are."""
    if backend == "openvino":
        return {}
    from rest_deploy.graph.unsign import unsign_activations

    return {"unsign_activations": unsign_activations(model)}


def _typed(made: Made, sixteen: Sixteen, source: Session, request: Request) -> Made:
    """`made` with its float tensors in 16 bits outside the islands."""
    import onnx_ir as ir

    from rest_deploy.graph.precision import emulate, to_sixteen_bit

    if sixteen == "fp16" and request.gate:
        _check_overflow(made.original or made.model, source, request)
    types = to_sixteen_bit(made.model, sixteen, io_type=request.io_type)
    # The proof rounds after every operator, which a CPU backend without 16-bit kernels skips.
    # Not model.clone(): its values share their types with the original's.
    twin = ir.from_proto(ir.to_proto(made.model))
    emulate(twin)
    nodes = {f"nodes in {name}": count for name, count in types.items()}
    return replace(made, proof=twin, passes=made.passes | nodes, rest=sixteen)


def _without_kernels(made: Made, backend: str, workspace: Path) -> list[Place]:
    """Places where every layer that the recipe quantized is computed in float."""
    import onnx_ir as ir

    from rest_deploy.graph.roles import place

    assert made.table is not None
    with staging(workspace) as folder:
        ir.save(made.model, folder / "probe.onnx")
        computed = _kernels(folder / "probe.onnx", backend)
    kinds: dict[Place, set[str]] = {}
    for name, kind in computed:
        here = place(name)
        if here is not None and made.table.recipe.wants(here):
            kinds.setdefault(here, set()).add(kind)
    return [here for here, found in kinds.items() if found == {"float"}]


def _quantized(path: Path, report: CalibrationReport, table: CalibrationTable) -> Made:
    from rest_deploy.quant.calibrate import prepared
    from rest_deploy.quant.calibrate import quantize as run

    model, placement = run(path, table)
    kind: str = table.recipe.format
    return Made(
        model=model,
        proof=model,
        asked={role: {kind: count} for role, count in placement.quantized.items()},
        original=prepared(path, table),
        calibration=report,
        table=table,
        skipped={role: dict(reasons) for role, reasons in placement.skipped.items()},
    )


def _table(
    source: Session, request: Request, workspace: Path, counter: Counter
) -> tuple[CalibrationReport, CalibrationTable]:
    if request.table is not None:
        report, table = given_table(request.table, source.path)
    else:
        report, table = calibrate(
            source.path,
            workspace=workspace,
            images=request.images,
            recipe=request.recipe or request.precision,
            counter=counter,
        )
    if table.recipe.format != request.precision:
        raise InputError(
            f"the recipe {table.recipe.name!r} is for {table.recipe.format}, "
            f"{request.precision} was asked for",
            hint=f"--{table.recipe.format}, or another --recipe",
        )
    return report, table


def _check_overflow(model: ir.Model, source: Session, request: Request) -> None:
    """Real images through the float graph: does anything leave FP16's range?"""
    from rest_deploy.graph.precision import beyond_fp16
    from rest_deploy.quant.extents import largest_values

    images = gate_data(source.metadata, request.gate_data, OVERFLOW_IMAGES).images
    found = beyond_fp16(largest_values(model, lambda done: gate.in_batches(images[done:])))
    if found:
        raise InputError(
            f"{len(found)} tensors leave FP16's range (65504) on real images: "
            f"{'; '.join(found[:3])}",
            hint="--bf16 has float32's range",
        )


def _asked(model: ir.Model, kind: str) -> Kinds:
    """Weight layers of a graph without Q/DQ, all of one kind."""
    return by_role((node.name or "", kind) for node in model.graph
                    if node.op_type in {"MatMul", "Gemm", "Conv"})  # fmt: skip


def by_role(found: Iterable[tuple[str, str]]) -> Kinds:
    """(node name, kind) of layers -> how many of each kind a role has."""
    from rest_deploy.graph.roles import place

    roles: dict[str, Tally[str]] = {}
    for name, kind in found:
        here = place(name)
        if here is not None:
            roles.setdefault(here.role, Tally())[kind] += 1
    return {role: dict(counts) for role, counts in roles.items()}
