"""Engine + another checkpoint of the same model -> the engine with its weights, gated again."""

from __future__ import annotations

import hashlib
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rest_deploy.artifact import Sidecar, publish, sealed, sha256_file, staging
from rest_deploy.cards import read_labels
from rest_deploy.contracts import (
    Build,
    EngineFit,
    GateResult,
    ModelMetadata,
    Precision,
    Rest,
    Struct,
)
from rest_deploy.engine.tensorrt import NEEDS_GPU, NO_REFIT
from rest_deploy.errors import ArtifactError, InputError, require
from rest_deploy.runtime import loading
from rest_deploy.runtime.cuda import open_cuda
from rest_deploy.runtime.refit import refit as replace_weights
from rest_deploy.runtime.session import Session
from rest_deploy.signature import kinds_of
from rest_deploy.verbs import probes
from rest_deploy.verbs.export import export
from rest_deploy.verbs.gate import GATE_IMAGES, gate_data
from rest_deploy.verbs.judge import ITSELF, Judge, on_gpu
from rest_deploy.verbs.make import Request, make
from rest_deploy.verbs.progress import Progress, silent, step, uncounted
from rest_deploy.verify import gate


class RefitReport(Struct, frozen=True):
    """What `rest-deploy refit` did. Weights: hashes of the state before and after."""

    path: str
    metadata: ModelMetadata
    build: Build
    state_before: str
    state_after: str
    size_bytes: int
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Refitted:
    engine: bytes
    metadata: ModelMetadata
    graph_sha256: str
    source_sha256: str
    gate: GateResult | None
    gated: str
    tested: probes.Tested


def refit(
    path: Path,
    checkpoint: Path,
    *,
    output: Path | None = None,
    gate_set: Path | None = None,
    gate_images: int = GATE_IMAGES,
    no_gate: bool = False,
    progress: Progress = silent,
) -> RefitReport:
    """The engine with the checkpoint's weights, at `output` (None: in its place).

    Needs a GPU and an engine of `build-engine --refit`. The accuracy gate runs on the refitted
    engine itself; a failure of any kind leaves everything as it was.
    Raises `InputError` (not refittable), what `export` raises, `BuildError` (weights that do not
    fit), `VerificationError`, `DeviceError`.
    """
    started = time.monotonic()
    sidecar = loading.read_sealed(path) if path.is_file() else None
    if sidecar is None or sidecar.build is None or sidecar.build.fit is None:
        raise ArtifactError(
            f"{path} is no engine with a sidecar; expected one that build-engine wrote",
            hint="rest-deploy build-engine --fp16 --refit --backend tensorrt",
        )
    _check_refittable(path, sidecar, sidecar.build, sidecar.build.fit)
    require("torch", "export")
    content, sidecar = loading.check_engine(path, loading.examine())
    build = sidecar.build
    assert build is not None
    assert build.fit is not None
    request = Request(
        precision=build.precision,
        io_type="float16" if build.io_type == "float16" else "float32",
        gate=not no_gate,
        gate_data=gate_set,
        gate_images=gate_images,
        checkpoint=checkpoint,
    )
    target = output or path
    with staging(target.parent) as folder:
        done = _refitted(content, sidecar, build.fit, request, folder, progress)
        staged = folder / target.name
        staged.write_bytes(done.engine)
        fit = msgspec.structs.replace(
            build.fit,
            key=hashlib.sha256(f"{build.fit.key} {done.graph_sha256}".encode()).hexdigest(),
            graph_sha256=done.graph_sha256,
            options=_refitted_options(build.fit.options),
        )
        built = msgspec.structs.replace(
            build, fit=fit, source_sha256=done.source_sha256, gate=done.gate, gated=done.gated,
            site=done.tested.site, selftest=done.tested.selftest,
        )  # fmt: skip
        published = msgspec.structs.replace(
            sidecar,
            file=target.name,
            sha256=sha256_file(staged),
            size_bytes=len(done.engine),
            metadata=done.metadata,
            command=_command(path, checkpoint, output, request),
            build=built,
        )
        publish(staged, target, sealed(published))
    before = sidecar.metadata.weights.state_sha256
    after = done.metadata.weights.state_sha256
    warnings = []
    if before == after:
        warnings.append("these are the weights the engine had: nothing changed")
    if no_gate:
        warnings.append("refitted without the accuracy gate (--no-gate); the sidecar says so")
    return RefitReport(
        path=str(target),
        metadata=done.metadata,
        build=built,
        state_before=before,
        state_after=after,
        size_bytes=len(done.engine),
        seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


def _refitted_options(options: dict[str, str]) -> dict[str, str]:
    """The engine has its weights now, and can be refitted again."""
    kept = {name: value for name, value in options.items() if name != "strip-weights"}
    return kept | {"refit": "True"}


def _check_refittable(path: Path, sidecar: Sidecar, build: Build, fit: EngineFit) -> None:
    if fit.flavour == "tensorrt-rtx":
        raise InputError(
            f"{path} is a tensorrt-rtx engine, which is not built refittable here: "
            f"{NEEDS_GPU['refit']}",
            hint="build it again from the new checkpoint: rest-deploy export, then build-engine",
        )
    if not {"refit", "strip-weights"} & set(fit.options):
        raise InputError(f"{path} was not built to be refitted", hint=f"{sidecar.command} --refit")
    check_precision(build.precision)


def check_precision(precision: Precision) -> None:
    """Raise `InputError` for 8 bits."""
    if precision in ("int8", "fp8"):
        raise InputError(
            f"an {precision} engine cannot be refitted: {NO_REFIT}",
            hint="build it again from the new checkpoint: rest-deploy export, then build-engine",
        )


def _refitted(
    content: bytes,
    sidecar: Sidecar,
    fit: EngineFit,
    request: Request,
    folder: Path,
    progress: Progress,
) -> _Refitted:
    """Everything but the writing."""
    import onnx_ir as ir

    old = sidecar.metadata
    assert request.checkpoint is not None
    exported = export(
        old.card,
        output_dir=folder,
        checkpoint=request.checkpoint,
        instance_norm=old.instance_norm,
        opset=old.opset,
        outputs=kinds_of(old.gives),
        unit_length=any(output.unit_length for output in old.gives),
        input_kind=old.input_kind,
        progress=progress,
    )
    if exported.metadata.num_classes != old.num_classes:
        raise InputError(
            f"{request.checkpoint} has {exported.metadata.num_classes} classes, the engine has "
            f"{old.num_classes}: its head has another shape",
            hint="build an engine of its own: rest-deploy export, then build-engine",
        )
    source = Session.open(exported.path)
    rest: Rest = "fp32"
    made = make(source, request, rest, folder, progress, uncounted)
    graph, proof = folder / "graph.onnx", folder / "proof.onnx"
    ir.save(made.model, graph)
    judge = None
    if request.gate:
        used = graph
        if made.proof is not made.model:
            ir.save(made.proof, proof)
            used = proof
        data = gate_data(source.metadata, request.gate_data, request.gate_images)
        with step(progress, f"compared with the reference on {len(data.images)} images"):
            judge = Judge.of(source, data, request, made, graph, used)
            gate.enforce(judge.graph(graph, used), "the new model")
    with step(progress, "refitted the engine"):
        engine_bytes = replace_weights(content, fit.flavour, graph.read_bytes(), open_cuda())
    metadata = msgspec.structs.replace(exported.metadata, labels=_labels(old, exported.metadata))
    result, gated = None, ""
    whole = msgspec.structs.replace(fit, options=_refitted_options(fit.options))
    if judge is not None:
        with step(progress, "compared the engine itself with the reference"):
            ran = on_gpu(engine_bytes, whole, folder / sidecar.file, metadata, judge)
        if isinstance(ran, str):
            raise InputError(f"the gate cannot run the refitted engine: {ran}", hint="--no-gate")
        result, gated = ran, ITSELF
        gate.enforce(result, "the refitted engine")
    return _Refitted(
        engine=engine_bytes,
        metadata=metadata,
        graph_sha256=sha256_file(graph),
        source_sha256=sha256_file(Path(exported.path)),
        gate=result,
        gated=gated,
        tested=probes.of_engine(source, request, engine_bytes, whole, folder / sidecar.file),
    )


def _labels(old: ModelMetadata, new: ModelMetadata) -> tuple[str, ...]:
    """The checkpoint's own where it has some, else the engine's, which a user may have given."""
    head, classes = new.card.head, new.num_classes
    if not classes:
        return ()
    packaged = read_labels(head.labels if classes == head.num_classes else "", classes)
    return old.labels if new.labels == packaged else new.labels


def _command(path: Path, checkpoint: Path, output: Path | None, request: Request) -> str:
    words = ["rest-deploy", "refit", str(path), "--checkpoint", str(checkpoint)]
    if output is not None:
        words += ["--output", str(output)]
    if request.gate_data is not None:
        words += ["--gate-data", str(request.gate_data)]
    if not request.gate:
        words += ["--no-gate"]
    return shlex.join(words)
