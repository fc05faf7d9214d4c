"""Exported model -> reduced-precision ONNX file or engine, proven before it gets its name."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from rest_deploy.artifact import Sidecar, publish, sealed, sha256_file, staging
from rest_deploy.contracts import (
    Build,
    EngineFit,
    ModelMetadata,
    Proven,
    ProviderFit,
    Struct,
)
from rest_deploy.engine.backends import Choice
from rest_deploy.engine.tensorrt import MODULES as FLAVOURS
from rest_deploy.errors import require
from rest_deploy.quant.receipt import Measured
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import engine, openvino, probes, provider, saturation
from rest_deploy.verbs.calibrate import CalibrationReport
from rest_deploy.verbs.gate import gate_data
from rest_deploy.verbs.judge import ITSELF, Judge, on_gpu
from rest_deploy.verbs.make import Kinds, Made, Request, adapt, make, obtained, rest_for
from rest_deploy.verbs.progress import Counter, Progress, silent, step, uncounted
from rest_deploy.verbs.receipt import misfit, receipt_for
from rest_deploy.verbs.trial import Candidates, Trial, candidates, first_built
from rest_deploy.verbs.verify import open_export
from rest_deploy.verify import gate

NOT_RUN = "the gate looked at the graph; the engine itself was not run here"

GRAPH_ONLY = "onnx"
"""In a sidecar: no backend was built for; the file is for all of them."""


class BuildReport(Struct, frozen=True):
    """What `quantize` or `build-engine` did. `skipped`: role -> reason -> how many; `cached`: the
    engine was there already, built from the same things; `receipt`: what the recipe measured on the
    model it was shipped with; `trial`: the backends as "auto" timed them."""

    path: str
    metadata: ModelMetadata
    build: Build
    passed_over: tuple[tuple[str, str], ...]
    calibration: CalibrationReport | None
    skipped: Kinds
    passes: dict[str, int]
    size_bytes: int
    source_bytes: int
    seconds: float
    warnings: tuple[str, ...]
    cached: bool = False
    receipt: Measured | None = None
    trial: Trial | None = None


def build_engine(
    model: Path | None,
    request: Request,
    *,
    workspace: Path,
    backend: str = "auto",
    wishes: engine.Wishes = engine.NO_WISHES,
    through: provider.ProviderWishes = provider.NO_PROVIDER,
    progress: Progress = silent,
    counter: Counter = uncounted,
) -> BuildReport:
    """Engine for one backend from an exported float model (None: the newest of the workspace).

    backend: "auto" on a CPU is the fastest that passes its gate, see `verbs.trial`.
    wishes: for TensorRT. through: for ONNX Runtime, which of its providers. A TensorRT engine that
    was built from the same things is returned as it is.
    Raises `MissingDependencyError` (no such backend here), `VerificationError` (the accuracy gate,
    the proof of precision or placement), `BuildError` (NVIDIA's builder) and what `calibrate`
    raises; then nothing is written but the calibration table, the builder's log and the provider's
    cache.
    """
    source = open_export(model, workspace)
    found = choice_for(source, request, backend, through)
    able = Candidates((found,))
    if backend == "auto":
        able = candidates(source, request, found, progress, counter)

    def build(choice: Choice) -> BuildReport:
        return _build(source.path, request, workspace, choice, progress, counter, wishes, through)

    choice, report = first_built(able, build, progress)
    advice = able.trial.advice(choice.backend, request.precision) if able.trial else ""
    warnings = (*report.warnings, *([advice] if advice else []))
    return msgspec.structs.replace(report, trial=able.trial, warnings=warnings)


def choice_for(
    source: Session, request: Request, backend: str, through: provider.ProviderWishes
) -> Choice:
    """The named backend, or the best by what is known without measuring.

    Raises `MissingDependencyError`, `InputError`.
    """
    fresh = source.metadata.weights.kind == "fresh"
    unfit = openvino.unfit(request.precision, fresh=fresh)
    return provider.choose_with(through, backend, request.precision, unfit)


def artifact_path(
    source: Session, label: str, backend: str, workspace: Path, wishes: engine.Wishes
) -> Path:
    """Where an artifact goes: MODEL.LABEL.BACKEND.engine or .onnx. backend: "" for a mere file."""
    name = source.path.name.removesuffix(".onnx")
    suffix = f".{backend}" if backend else ""
    ending = ".engine" if backend in FLAVOURS else ".onnx"
    return wishes.save_engine or workspace / f"{name}.{label}{suffix}{ending}"


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
    wishes: engine.Wishes = engine.NO_WISHES,
    through: provider.ProviderWishes = provider.NO_PROVIDER,
) -> BuildReport:
    require("onnxruntime", "onnxruntime")
    require("onnx_ir", "export")
    import onnx_ir as ir

    started = time.monotonic()
    source = open_export(model, workspace)
    metadata = source.metadata
    route = provider.route(through, wishes, metadata.card.preprocessing, request)
    backend = route.name if route else choice.backend if choice else ""
    rest = rest_for(request, backend or None)
    on_openvino = openvino.chosen(choice)
    precision = openvino.precision_of(request, rest) if on_openvino else "f32"
    planned = None
    asked = wishes != engine.NO_WISHES and route is None
    if choice is not None and (asked or choice.backend in FLAVOURS):
        scratch = engine.estimator(source.path, request.precision, rest)
        planned = engine.plan(
            choice.backend, wishes, request.precision, rest, metadata.card.preprocessing, scratch
        )
        if wishes.expect_sizes or wishes.expect_batches or planned.serving:
            needs = max(scratch(profile.maximum) for profile in planned.options.profiles)
            words = f"planned {len(planned.options.profiles)} profiles, about {needs / 1e6:.0f} MB"
            progress(f"{words} of scratch memory", time.monotonic() - started)
    on_cpu = planned is None and route is None
    lacking = (
        saturation.lacks(backend) if on_cpu and backend and request.precision == "int8" else ""
    )
    if lacking:
        progress(lacking, time.monotonic() - started)
    data = gate_data(metadata, request.gate_data, request.gate_images) if request.gate else None
    wanted = openvino.with_recipe(request, backend)
    made = make(source, wanted, rest, workspace, progress, counter, typed=not on_openvino)
    if choice is not None and route is None:
        made = adapt(made, source.path, choice.backend, workspace)
    kinds = made.asked
    recipe = made.calibration.recipe.name if made.calibration else request.precision
    label = openvino.label(recipe, request.precision, backend)
    target = artifact_path(source, label, backend, workspace, wishes)
    warnings = _warnings(request, metadata)
    warnings += engine.left_out(planned)
    if choice is not None and planned is None:
        warnings += provider.idle_gpu(choice)
    fit: EngineFit | None = None
    rows: tuple[Proven, ...] = ()
    provided: ProviderFit | None = None
    with staging(target.parent) as folder:
        staged, proof = folder / f"{target.stem}.onnx", folder / "proof.onnx"
        ir.save(made.model, staged)
        if planned is not None:
            key = engine.cache_key(planned, sha256_file(staged), made, request)
            ready = engine.cached(target, key)
            if ready is not None and ready.build is not None and ready.build.site is not None:
                return _report(target, ready, ready.build, source, made, choice, started, warnings,
                               cached=True)  # fmt: skip
        elif route is not None:
            options = route.options(staged, target, metadata)
            with step(progress, f"proved that {route.backend} runs it"):
                provided = provider.prove(route, staged, options, target.name)
            kinds = provider.told(route, made, request.precision)
            warnings += provider.remarks(route)
        elif on_openvino:
            kinds = openvino.obtained(staged, precision)
            warnings += openvino.shortfall(made, kinds)
        elif choice is not None:
            kinds = obtained(staged)
            warnings += provider.shortfall(made, kinds, request, choice.backend)
        result, gated, judge, cause, infer = None, "", None, "", None
        if route is not None:
            infer = provider.infer(route, staged, options, metadata)
        elif on_openvino:
            infer = openvino.infer(staged, precision, metadata)
        where = route.backend if route else openvino.ON if on_openvino else ""
        if data is not None:
            if made.proof is not made.model:
                ir.save(made.proof, proof)
            with step(progress, f"compared with the reference on {len(data.images)} images"):
                used = proof if made.proof is not made.model else staged
                judge = Judge.of(source, data, request, made, staged, used)
                result = judge.graph(staged, used, infer)
                if on_openvino:
                    result = openvino.also_fixed(judge, result, staged, precision)
                gated = _gated(made, planned is not None, where)
                if on_cpu:
                    runs_on = where or "onnxruntime/cpu"
                    cause = judge.because_of_the_cpu(result, staged, made.sums, runs_on)
            gate.enforce(result, target.name, cause, saturation.MEND if cause else "")
        if planned is not None:
            proved = engine.build(planned, staged, made, request, target, key, counter)
            progress("built and proved the engine", proved.fit.build_seconds)
            fit, rows, kinds = proved.fit, proved.rows, proved.kinds
            staged = folder / target.name
            staged.write_bytes(proved.engine)
            if judge is not None:
                with step(progress, "compared the engine itself with the reference"):
                    on_engine = on_gpu(proved.engine, proved.fit, staged, source.metadata, judge)
                if isinstance(on_engine, str):
                    warnings.insert(0, f"{NOT_RUN}: {on_engine}")
                else:
                    result, gated = on_engine, ITSELF
                    gate.enforce(on_engine, target.name)
            tested = probes.of_engine(source, request, proved.engine, proved.fit, staged)
        else:
            shapes = provided.profiles if provided else ()
            tested = probes.of_file(
                source, request, staged, infer, where, shapes, typed=made.proof is not made.model
            )
        built = Build(
            precision=request.precision,
            backend=GRAPH_ONLY if choice is None else choice.backend,
            io_type=request.io_type,
            obtained=kinds,
            rest=rest if made.calibration else "",
            float_places=made.float_places,
            source_sha256=sha256_file(source.path),
            recipe=recipe if made.calibration else "",
            table_sha256=made.calibration.table_sha256 if made.calibration else "",
            gate=result,
            gated=gated,
            fit=fit,
            proof=rows,
            provider=route.provider.name if route else "",
            through=provided,
            sums=made.sums if on_cpu else (),
            site=tested.site,
            selftest=tested.selftest,
        )
        sidecar = Sidecar(
            schema=1,
            kind="onnx" if planned is None else "engine",
            file=target.name,
            sha256=sha256_file(staged),
            size_bytes=staged.stat().st_size,
            metadata=metadata,
            parity=None,
            passes=made.passes,
            command=_command(source.path, request, choice, [*wishes.words(), *through.words()]),
            build=built,
        )
        if planned is not None:
            sidecar = sealed(sidecar)
        publish(staged, target, sidecar)
    return _report(target, sidecar, built, source, made, choice, started, warnings, cause=cause)


def _warnings(request: Request, metadata: ModelMetadata) -> list[str]:
    if not request.gate:
        return ["built without the accuracy gate (--no-gate); the sidecar says so"]
    warnings = []
    if metadata.weights.kind == "fresh":
        warnings.append("fresh weights: the gate holds errors only, classes mean nothing")
    return warnings


def _gated(made: Made, engine_file: bool, where: str) -> str:
    """What the gate looked at. where: the backend that ran the file itself, if one did."""
    if where:
        return f"the file, on {where}"
    what = "the ONNX graph it was built from" if engine_file else "the file"
    rounded = "" if made.proof is made.model else ", rounded to 16 bits after every operator"
    return f"{what}{rounded}, on onnxruntime/cpu"


def _report(
    target: Path,
    sidecar: Sidecar,
    built: Build,
    source: Session,
    made: Made,
    choice: Choice | None,
    started: float,
    warnings: Iterable[str] = (),
    *,
    cached: bool = False,
    cause: str = "",
) -> BuildReport:
    measured = receipt_for(source.metadata, built)
    return BuildReport(
        path=str(target),
        metadata=source.metadata,
        build=built,
        passed_over=choice.passed_over if choice else (),
        calibration=made.calibration,
        skipped=made.skipped,
        passes=sidecar.passes,
        size_bytes=sidecar.size_bytes,
        source_bytes=source.path.stat().st_size,
        seconds=time.monotonic() - started,
        warnings=(*warnings, *misfit(measured, built, cause)),
        cached=cached,
        receipt=measured,
    )


def _command(model: Path, request: Request, choice: Choice | None, more: list[str]) -> str:
    """more: of the backend's own options."""
    words = ["rest-deploy", "quantize" if choice is None else "build-engine", str(model)]
    words += [f"--{request.precision}"]
    if choice is not None:
        words += ["--backend", choice.backend]
    images = request.images
    for option, value in (
        ("--calib-data", images.data), ("--limit", images.limit), ("--seed", images.seed or None),
        ("--calib-sizes", ",".join(f"{h}x{w}" for h, w in images.sizes) or None),
        ("--recipe", request.recipe), ("--table", request.table),
        ("--gate-data", request.gate_data),
    ):  # fmt: skip
        if value is not None:
            words += [option, str(value)]
    if request.rest is not None:
        words += ["--rest", request.rest]
    if request.io_type != "float32":
        words += ["--io-type", request.io_type]
    if not request.gate:
        words += ["--no-gate"]
    words += more
    return shlex.join(words)
