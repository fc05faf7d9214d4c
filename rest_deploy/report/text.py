"""Reports as plain text for a terminal, at most 100 columns."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from rest_deploy import machine
from rest_deploy.contracts import Build, ModelMetadata, Struct
from rest_deploy.layout import layout_of
from rest_deploy.report import selftest
from rest_deploy.report.engine import fit_lines, provider_lines
from rest_deploy.runtime.classifier import Prediction
from rest_deploy.signature import Output
from rest_deploy.verbs import ExportReport, Inspection, VariantTable
from rest_deploy.verify.parity import CaseResult, ParityReport

WIDTH = 100
"""Columns of a terminal."""

FRESH_WARNING = "fresh weights (no --checkpoint): the predictions and the accuracy mean nothing"


class ImagePredictions(Struct, frozen=True):
    image: str
    predictions: tuple[Prediction, ...]


class Predictions(Struct, frozen=True):
    """`fresh`: the model has no trained weights."""

    model: str
    fresh: bool
    images: tuple[ImagePredictions, ...]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2) -> str:
    """Columns as wide as their widest cell, `gap` spaces between; the first `left` columns are
    left-aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return (" " * gap).join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def export(report: ExportReport) -> str:
    lines = [
        f"{report.path}: {report.metadata.card.name}, {_classes(report.metadata)}, "
        f"opset {report.metadata.opset}, {report.size_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s",
        f"weights: {_weights(report.metadata)}",
        *found_lines(report.notes),
        _counts("rewrites", report.rewrites),
        _counts("passes", report.passes),
        "",
        case_table(report.parity, beyond="beyond"),
    ]
    if report.metadata.weights.kind == "fresh":
        lines.append(f"warning: {FRESH_WARNING}")
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)


def found_lines(notes: Sequence[str]) -> list[str]:
    """What was found in a checkpoint, wrapped."""
    return [textwrap.fill(f"found: {note}", WIDTH, subsequent_indent="  ") for note in notes]


def parity(report: ParityReport) -> str:
    verdict = "PASS" if report.passed else "FAIL"
    worst = max(report.results, key=lambda result: (not result.passed, result.relative_error))
    return "\n".join(
        [
            f"{report.model} on {report.backend} against PyTorch {report.reference}; "
            f"inputs: {report.inputs}",
            "",
            case_table(report.results),
            "",
            f"{verdict}: relative error at most {worst.relative_error:.1e}, "
            + bounds(worst.bound, worst.card_bound, worst.float32_error),
            *([f"cause: {report.cause}"] if report.cause else []),
        ]
    )


def bounds(bound: float, card_bound: float | None, float32_error: float | None) -> str:
    """ "bound 1e-05", and where PyTorch in float32 was asked, what it and the card have to say."""
    if float32_error is None or card_bound is None:
        return f"bound {bound:.0e}"
    return (
        f"bound {bound:.1e} (of the card {card_bound:.0e}, PyTorch itself in float32 "
        f"{float32_error:.1e})"
    )


def case_table(results: Sequence[CaseResult], beyond: str = "FAIL") -> str:
    """One row a case; `beyond` marks those outside their bound. PyTorch's own error in float32 has
    a column where it was asked for."""
    asked = any(result.float32_error is not None for result in results)
    own = ("PyTorch float32",) if asked else ()
    header = (
        "input", "output", "relative error", *own, "max abs", "cosine", "KL", "top-1 agreement", ""
    )  # fmt: skip
    rows = [
        (
            str(result.case),
            result.output,
            f"{result.relative_error:.1e}",
            *(("-" if result.float32_error is None else f"{result.float32_error:.1e}",) * asked),
            f"{result.max_abs_error:.1e}",
            f"{result.cosine:.9f}",
            "-" if result.kl is None else f"{result.kl:.1e}",
            "-" if result.agreement is None else f"{result.agreement:.1%}",
            "ok" if result.passed else beyond,
        )
        for result in results
    ]
    if len({result.output for result in results}) < 2:  # told in the first line
        return table((header[0], *header[2:]), [(row[0], *row[2:]) for row in rows])
    return table(header, rows, left=2)


def predictions(found: Predictions) -> str:
    blocks = [f"warning: {FRESH_WARNING}"] if found.fresh else []
    for image in found.images:
        rows = [f"  {p.probability:7.2%}  {p.label}" for p in image.predictions]
        blocks.append("\n".join([image.image, *rows]))
    return "\n".join(blocks)


def variants(listing: VariantTable) -> str:
    header = ("variant", "name", "params M", "GFLOPs", "published: top-1", "params M", "GFLOPs")
    rows = [
        (
            row.variant,
            row.name,
            _number(row.parameters_m, 2),
            _number(row.gflops, 2),
            _number(row.published_top1, 1),
            _printed(row.published_parameters_m),
            _number(row.published_gflops, 1),
        )
        for row in listing.rows
    ]
    sources = sorted({row.source for row in listing.rows if row.source})
    return "\n".join(
        [table(header, rows, left=2), "", textwrap.fill(listing.note, WIDTH), *sources]
    )


def inspection(found: Inspection) -> str:
    lines = [f"{found.file}: {found.kind}, {found.size_bytes / 1e6:.1f} MB",
             f"  sha256        {found.sha256}"]  # fmt: skip
    if found.metadata is not None:
        lines += [f"  {name:<13} {value}" for name, value in _describe(found.metadata)]
    if found.sidecar is not None and found.sidecar.parity is not None:
        proof = found.sidecar.parity
        lines.append(
            f"  {'parity':<13} relative error {proof.relative_error:.1e} against {proof.reference} "
            f"at {', '.join(proof.cases)}; "
            + bounds(proof.bound, proof.card_bound, proof.float32_error)
        )
    if found.sidecar is not None:
        if found.sidecar.build is not None:
            lines += _describe_build(found.sidecar.build)
        lines.append(f"  {'made by':<13} {found.sidecar.command}")
    elif found.kind == "onnx":
        lines.append("  no sidecar: nothing proves that the file is the one that was exported")
    if found.kind == "checkpoint":
        lines += [
            f"  {'tensors':<13} {found.tensors}, {found.parameters / 1e6:.2f} M values",
            f"  {'classes':<13} {found.num_classes or 'no head'}",
            f"  {'fits':<13} {', '.join(found.fits) or 'no known variant'}",
            *(f"  {'':<13} {note}" for note in found.notes),
        ]
    return "\n".join(lines)


def _describe_build(build: Build) -> list[str]:
    kinds: Counter[str] = Counter()
    for counts in build.obtained.values():
        kinds.update(counts)
    computes = ", ".join(f"{count} in {kind}" for kind, count in kinds.items())
    through = f"/{build.provider}" if build.provider else ""
    lines = [
        f"  {'precision':<13} {build.precision} for {build.backend}{through}, "
        f"matrix layers: {computes}",
    ]
    if build.through is not None:
        lines += [f"  {line}" for line in provider_lines(build.through)]
    if build.fit is not None:
        lines += [f"  {line}" for line in fit_lines(build.fit)]
    if build.table_sha256:
        lines.append(
            f"  {'calibration':<13} recipe {build.recipe}, table sha256 {build.table_sha256[:12]}"
        )
    lines += [f"  {'8-bit sums':<13} {words}" for words in sums(build)]
    lines.append(f"  {'self-test':<13} {selftest.line(build)}")
    if build.gate is None:
        return [*lines, f"  {'gate':<13} switched off (--no-gate)"]
    worst = "; ".join(f"{check.name} {check.value:.3g}" for check in build.gate.checks)
    verdict = "passed" if build.gate.passed else "FAILED"
    on = f" (of {build.gated})" if build.fit is not None or build.provider else ""
    return [*lines, f"  {'gate':<13} {verdict} on {build.gate.source}{on}: {worst}"]


def sums(build: Build) -> list[str]:
    """On which CPUs the 8-bit sums of an INT8 file are exact, in a line; none of other files."""
    if not build.sums:
        return []
    places = f"{len(build.sums)} places"
    if build.exact_everywhere:
        return [f"exact on every x86 CPU, proven from the weights of {places}"]
    loose = Counter(found.role for found in build.sums if not found.exact)
    roles = ", ".join(f"{role} {count}" for role, count in loose.items())
    features = machine.features_for(build.backend)
    here = "" if machine.adds_bytes_exactly(features) else "; this one has none"
    return [f"exact on CPUs with VNNI only in {loose.total()} of {places} ({roles}){here}"]


def _describe(metadata: ModelMetadata) -> list[tuple[str, str]]:
    preprocessing = metadata.card.preprocessing
    return [
        ("variant", f"{metadata.variant} ({metadata.card.name}), {_classes(metadata)}"),
        ("weights", _weights(metadata)),
        ("input", f"{metadata.input_name}, {layout_of(metadata.input_kind).words} sides >= 32"),
        *(("output", described(output)) for output in metadata.gives),
        (
            "preprocessing",
            f"{preprocessing.interpolation} to {preprocessing.resize}, crop {preprocessing.crop}, "
            f"mean {list(preprocessing.mean)}, std {list(preprocessing.std)}",
        ),
        ("graph", f"opset {metadata.opset}, {_norm(metadata)}"),
        ("tools", ", ".join(f"{name} {version}" for name, version in metadata.tools.items())),
    ]


def _norm(metadata: ModelMetadata) -> str:
    normed = metadata.card.architecture.attention_norm
    return f"InstanceNorm {metadata.instance_norm}" if normed else "no InstanceNorm"


def _classes(metadata: ModelMetadata) -> str:
    """What it gives; of a classifier's logits only the classes."""
    names = ", ".join(output.name for output in metadata.gives)
    if not metadata.num_classes:
        return f"{names}, no head"
    return f"{metadata.num_classes} classes" + (f", {names}" if names != "logits" else "")


def described(output: Output) -> str:
    """ "c3 (batch, 128, height/8, width/8), rounded up" """
    if output.stride:
        side = f"(batch, {output.channels}, height/{output.stride}, width/{output.stride})"
        return f"{output.name} {side}, rounded up"
    unit = ", of L2 norm 1" if output.unit_length else ""
    return f"{output.name} (batch, {output.channels}){unit}"


def _weights(metadata: ModelMetadata) -> str:
    weights = metadata.weights
    if weights.kind == "fresh":
        return f"fresh, seed {weights.seed}"
    entry = f" [{weights.key}]" if weights.key else ""
    return f"{weights.path}{entry}, sha256 {weights.sha256[:12]}"


def _counts(title: str, counts: Mapping[str, int]) -> str:
    """How often each transformation fired, wrapped."""
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return textwrap.fill(f"{title}: {listed}", WIDTH, subsequent_indent="  ")


def _printed(value: float | None) -> str:
    """With the digits that the paper has."""
    return "-" if value is None else f"{value:g}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
