"""Checkpoint -> checked ONNX file."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rest_deploy.artifact import Parity, Sidecar, data_sha256, publish, sha256_file, staging
from rest_deploy.cards import load_card, read_labels
from rest_deploy.contracts import InstanceNormForm, ModelCard, ModelMetadata, Struct
from rest_deploy.errors import CheckpointError, InputError, VerificationError, require
from rest_deploy.signature import InputKind, OutputKind, kinds_of, outputs_for
from rest_deploy.verbs.progress import Progress, silent, step
from rest_deploy.verbs.source import choose
from rest_deploy.verify.parity import (
    MOST_FLOAT32_ERROR,
    Case,
    CaseResult,
    Infer,
    bound,
    compare,
    images_for,
    in_float32,
    synthetic_images,
)

if TYPE_CHECKING:
    from rest_deploy.model.reference import Reference

EXPORT_CASES = (
    Case(batch=1, height=32, width=32),
    Case(batch=3, height=97, width=131),
    Case(batch=1, height=224, width=224),
)

UNFOLDED_SLACK = 100.0
"""The native and decomposed InstanceNorm lose precision with the size of the map; at small
sizes they must still be within this many times the card's bound, which proves the graph."""

UNFOLDED_PROVEN_PIXELS = 128 * 160


class ExportReport(Struct, frozen=True):
    """What `rest-deploy export` did."""

    path: str
    metadata: ModelMetadata
    parity: tuple[CaseResult, ...]
    rewrites: dict[str, int]
    passes: dict[str, int]
    size_bytes: int
    seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


def export(
    variant: str | ModelCard | None = None,
    *,
    output_dir: Path,
    checkpoint: Path | None = None,
    checkpoint_key: str | None = None,
    instance_norm: InstanceNormForm = "folded",
    opset: int | None = None,
    num_classes: int | None = None,
    labels: str | None = None,
    input_size: int | None = None,
    resize: int | None = None,
    seed: int = 0,
    outputs: Sequence[OutputKind] = (),
    unit_length: bool = False,
    input_kind: InputKind = "float",
    progress: Progress = silent,
) -> ExportReport:
    """Checkpoint -> checked ONNX file and sidecar in `output_dir`. variant: a name or a card; None:
    told from the checkpoint's names and shapes.

    outputs: what the graph gives, in order; none: logits, or without a head the embedding.
    unit_length: the embedding has L2 norm 1. input_kind: "uint8" takes pixels and normalizes them
    in the graph. docs/outputs.md.

    The file gets its name after onnx.checker, loading in ONNX Runtime and parity with the float64
    reference at several sizes; until then, and on any error, what was there stays.
    labels: a file with one class name a line, or the name of a packaged list. input_size, resize:
    pixels, instead of the card's crop and resize (see `source.choose`).
    Raises `CheckpointError`, `CardError`, `InputError`, `OutputError`, `MissingDependencyError`,
    `VerificationError` (the exported graph does not compute the reference function).
    """
    started = time.monotonic()
    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        require(module, "export")
    require("onnxruntime", "onnxruntime")
    if isinstance(variant, str):
        load_card(variant)  # a wrong name is told before anything is imported
    with step(progress, "imported PyTorch"):
        from rest_deploy.graph import export as graph_export
        from rest_deploy.model.checkpoint import load_model
        from rest_deploy.model.deploy import to_deploy
        from rest_deploy.model.outputs import Outputs, takes
        from rest_deploy.model.reference import Reference
    with step(progress, "loaded the weights"):
        source = choose(
            variant, checkpoint, key=checkpoint_key, input_size=input_size, resize=resize
        )
        card = source.card
        _check_form(instance_norm, card)
        loaded = load_model(card, source.checkpoint, num_classes=num_classes, seed=seed)
    wanted = tuple(outputs)
    if not loaded.pooled:
        wanted = _of_maps(wanted, checkpoint)
    given = outputs_for(wanted, card.architecture, loaded.num_classes, unit_length=unit_length)
    used_opset = graph_export.DEFAULT_OPSET if opset is None else opset
    metadata = ModelMetadata(
        schema=1,
        variant=card.variant,
        card=card,
        num_classes=loaded.num_classes,
        labels=_labels(labels, loaded.labels, card.head.labels, card.head.num_classes,
                       loaded.num_classes),
        input_name="image",
        output_name=given[0].name,
        instance_norm=instance_norm,
        opset=used_opset,
        weights=loaded.weights,
        tools=graph_export.tool_versions(),
        outputs=given,
        input_kind=input_kind,
    )  # fmt: skip
    with staging(output_dir) as folder:
        with step(progress, "rewrote and traced the model"):
            deployed, rewrites = to_deploy(loaded.module, instance_norm)
            graph, passes = graph_export.trace(
                Outputs(deployed, given, takes(input_kind, card.preprocessing)),
                used_opset,
                [output.name for output in given],
                input_kind,
            )
        target = output_dir / file_name(metadata)
        staged = folder / target.name
        with step(progress, "wrote and checked the ONNX file"):
            graph_export.describe(graph, msgspec.json.encode(metadata).decode())
            graph_export.save(graph, staged)
        with step(progress, "compared with PyTorch in float64"):
            results, warnings = _prove(
                staged,
                metadata,
                Reference(loaded.module, outputs=given),
                in_float32(loaded.module, given),
            )
        sidecar = Sidecar(
            schema=1,
            kind="onnx",
            file=target.name,
            sha256=sha256_file(staged),
            size_bytes=staged.stat().st_size,
            metadata=metadata,
            parity=_stored(results),
            passes={**rewrites, **passes},
            data_sha256=data_sha256(staged),
            command=_command(
                variant if isinstance(variant, str) else card.variant,
                metadata,
                {
                    "--checkpoint": checkpoint,
                    "--checkpoint-key": checkpoint_key,
                    "--num-classes": num_classes,
                    "--input-size": input_size,
                    "--resize": resize,
                },
            ),
        )
        publish(staged, target, sidecar)
    return ExportReport(
        path=str(target),
        metadata=metadata,
        parity=results,
        rewrites=rewrites,
        passes=passes,
        size_bytes=sidecar.size_bytes,
        seconds=time.monotonic() - started,
        warnings=(*source.warnings, *warnings),
        notes=source.notes,
    )


def _of_maps(outputs: tuple[OutputKind, ...], checkpoint: Path | None) -> tuple[OutputKind, ...]:
    """What a backbone without the norm before the pooling gives: feature maps, and nothing else."""
    if set(outputs) - {"features"}:
        raise CheckpointError(
            f"{checkpoint} has neither a head nor the norm before it: it gives feature maps, no "
            "embedding and no logits",
            hint="--output features",
        )
    return ("features",)


def _check_form(instance_norm: InstanceNormForm, card: ModelCard) -> None:
    """Raise `InputError` where one is asked for and the variant has no such norm."""
    if instance_norm != "folded" and not card.architecture.attention_norm:
        raise InputError(
            f"--instance-norm {instance_norm}: the attention of {card.variant} has no InstanceNorm",
            hint="leave --instance-norm out",
        )


def file_name(metadata: ModelMetadata) -> str:
    """rest_lite.onnx for logits, or the embedding of a model without a head, of normalized images.

    What differs is told, in this order: rest_lite.native.onnx (the InstanceNorm's form),
    rest_lite.logits+embedding.onnx, rest_lite.unit-embedding.onnx, rest_lite.features.uint8.onnx.
    """
    parts = [metadata.card.name]
    if metadata.instance_norm != "folded":
        parts.append(metadata.instance_norm)
    usual = outputs_for((), metadata.card.architecture, metadata.num_classes)
    if metadata.gives != usual:
        unit = any(output.unit_length for output in metadata.gives)
        words = {"embedding": "unit-embedding"} if unit else {}
        parts.append("+".join(words.get(kind, kind) for kind in kinds_of(metadata.gives)))
    if metadata.input_kind != "float":
        parts.append(metadata.input_kind)
    return ".".join([*parts, "onnx"])


def _stored(results: tuple[CaseResult, ...]) -> Parity:
    """The worst of all outputs and cases, with what it was held against."""
    worst = max(results, key=lambda result: result.relative_error)
    return Parity(
        reference="float64",
        relative_error=worst.relative_error,
        max_abs_error=max(result.max_abs_error for result in results),
        agreement=min(
            (result.agreement for result in results if result.agreement is not None),
            default=None,
        ),
        bound=worst.bound,
        cases=tuple(dict.fromkeys(str(result.case) for result in results)),
        card_bound=worst.card_bound,
        float32_error=worst.float32_error,
    )


def _prove(
    staged: Path, metadata: ModelMetadata, reference: Reference, float32: Sequence[Infer]
) -> tuple[tuple[CaseResult, ...], tuple[str, ...]]:
    """Parity of a staged file. Returns the results and warnings; raises `VerificationError`.

    float32: PyTorch's own answers, for weights with which float32 cannot keep the card's bound.
    """
    from rest_deploy.runtime.session import Session

    session, limit = Session.open(staged), bound(metadata)
    side = metadata.card.preprocessing.crop
    own = Case(batch=1, height=side, width=side)
    cases = EXPORT_CASES if own in EXPORT_CASES else (*EXPORT_CASES, own)
    images = images_for(metadata, synthetic_images)
    results = compare(
        session.run_normalized, reference.all, metadata.gives, cases, images, limit, float32
    )
    folded = metadata.instance_norm == "folded" or not metadata.card.architecture.attention_norm
    for result in results:
        small = result.case.height * result.case.width <= UNFOLDED_PROVEN_PIXELS
        most = result.bound if folded else max(result.bound, limit * UNFOLDED_SLACK)
        if (folded or small) and not result.relative_error <= most:
            raise _refusal(result, most)
    beyond = [result for result in results if not result.passed]
    warnings = []
    if beyond:
        worst = max(beyond, key=lambda result: result.relative_error)
        warnings.append(
            f"the {metadata.instance_norm} InstanceNorm is ill-conditioned in float32: relative "
            f"error {worst.relative_error:.1e} at {worst.case}, above the card's {limit:.0e}; "
            "--instance-norm folded computes the same function exactly"
        )
    return results, tuple(warnings)


def _refusal(result: CaseResult, most: float) -> VerificationError:
    """Which of the two it is: weights that float32 cannot compute, or another function."""
    own = result.float32_error
    found = f"relative error {result.relative_error:.1e} of {result.output} at {result.case}"
    if own is not None and not own <= MOST_FLOAT32_ERROR:
        return VerificationError(
            f"float32 cannot compute these weights: PyTorch itself departs by {own:.1e} from "
            f"float64, the exported graph by {found}, expected at most {most:.0e}; nothing was "
            "written",
            hint="look for values that are not finite or far too large in the checkpoint, or take "
            "another one: --checkpoint F",
        )
    beside = "" if own is None else f" (PyTorch itself in float32: {own:.1e})"
    return VerificationError(
        f"the exported graph departs from PyTorch in float64: {found}, expected at most "
        f"{most:.1e}{beside}; nothing was written",
        hint="please report this with the variant and the opset",
    )


def _labels(
    option: str | None, stored: tuple[str, ...], packaged: str, packaged_classes: int, classes: int
) -> tuple[str, ...]:
    """The user's list, else the checkpoint's own, else the card's if it has the class count."""
    if classes == 0:
        return ()
    if option is not None:
        return read_labels(option, classes)
    if stored and len(stored) != classes:
        raise CheckpointError(
            f"the checkpoint names {len(stored)} labels and has {classes} classes",
            hint="--labels FILE gives the right ones",
        )
    if stored:
        return stored
    return read_labels(packaged if classes == packaged_classes else "", classes)


def _command(
    variant: str, metadata: ModelMetadata, given: Mapping[str, Path | str | int | None]
) -> str:
    """given: options as the user gave them, None: not at all."""
    words = ["rest-deploy", "export", "--variant", variant]
    for option, value in given.items():
        if value is not None:
            words += [option, str(value)]
    words += ["--instance-norm", metadata.instance_norm, "--opset", str(metadata.opset)]
    if metadata.gives != outputs_for((), metadata.card.architecture, metadata.num_classes):
        words += [word for kind in kinds_of(metadata.gives) for word in ("--output", kind)]
    if any(output.unit_length for output in metadata.gives):
        words.append("--unit-length")
    if metadata.input_kind != "float":
        words += ["--input", metadata.input_kind]
    return shlex.join(words)
