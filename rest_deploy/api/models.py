"""A checkpoint as a module and as a proven ONNX file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rest_deploy import artifact, verbs
from rest_deploy.api.given import PathLike, Sizes, path_of
from rest_deploy.contracts import InstanceNormForm, ModelCard
from rest_deploy.errors import require
from rest_deploy.signature import InputKind, OutputKind
from rest_deploy.verbs import ExportReport, Progress, silent
from rest_deploy.verify.parity import ParityReport

if TYPE_CHECKING:
    from rest_deploy.model.checkpoint import LoadedModel


def load_model(
    checkpoint: PathLike | None = None,
    *,
    variant: str | ModelCard | None = None,
    checkpoint_key: str | None = None,
    num_classes: int | None = None,
    input_size: int | None = None,
    resize: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """A checkpoint, or fresh weights, as a PyTorch module in eval mode and float32.

    `module` of what is returned takes (N, 3, H, W), normalized, H and W >= 32, and returns logits
    (N, num_classes), without a head the embedding (N, C). `card` has the preprocessing, `notes`
    what was found in the file and left out.

    variant: a name, the path of a card, or a card; left out: told from the checkpoint's names and
    shapes. checkpoint_key: entry or prefix of the weights in the file. input_size, resize: pixels,
    instead of the card's.

    Raises `InputError` (neither variant nor checkpoint), `CardError`, `CheckpointError`,
    `MissingDependencyError` (PyTorch).

    >>> loaded = rest_deploy.load_model("finetuned.safetensors")
    >>> loaded.card.variant, loaded.num_classes, loaded.labels[0]
    ('nano', 22, 'astronaut')
    """
    for module in ("torch", "safetensors"):
        require(module, "export")
    from rest_deploy.model.checkpoint import load_model as load
    from rest_deploy.verbs.source import choose

    source = choose(
        variant, path_of(checkpoint), key=checkpoint_key, input_size=input_size, resize=resize
    )
    loaded = load(source.card, source.checkpoint, num_classes=num_classes, seed=seed)
    return dataclasses.replace(loaded, notes=source.notes, warnings=source.warnings)


def export(
    checkpoint: PathLike | None = None,
    *,
    variant: str | ModelCard | None = None,
    checkpoint_key: str | None = None,
    output_dir: PathLike | None = None,
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
    """A checkpoint as an ONNX file, proven against PyTorch in float64 before it gets its name.

    The file takes any batch, height and width; its sidecar (.json beside it) says what it was made
    from. output_dir: left out, the workspace. labels: a file with one class name a line. outputs:
    what the graph gives, in order; left out: logits, without a head the embedding. unit_length: the
    embedding has L2 norm 1. input_kind: "uint8" takes RGB pixels (N, H, W, 3). The rest: see
    `load_model`.

    Raises what `load_model` raises, `OutputError`, and `VerificationError` where the exported graph
    does not compute the same function.

    >>> report = rest_deploy.export("finetuned.safetensors", output_dir="build")
    >>> report.path
    'build/rest_nano.onnx'
    >>> all(case.passed for case in report.parity)
    True
    >>> report.notes[0][:21]
    'variant nano, guessed'
    """
    return verbs.export(
        variant,
        output_dir=artifact.workspace(path_of(output_dir)),
        checkpoint=path_of(checkpoint),
        checkpoint_key=checkpoint_key,
        instance_norm=instance_norm,
        opset=opset,
        num_classes=num_classes,
        labels=labels,
        input_size=input_size,
        resize=resize,
        seed=seed,
        outputs=outputs,
        unit_length=unit_length,
        input_kind=input_kind,
        progress=progress,
    )


def verify_model(
    model: PathLike | None = None,
    *,
    reference: Literal["float64", "float32"] = "float64",
    sizes: Sizes | None = None,
    batches: Sequence[int] | None = None,
    images: PathLike | None = None,
    checkpoint: PathLike | None = None,
    threads: int | None = None,
    backend: str | None = None,
    provider: str | None = None,
    workspace: PathLike | None = None,
) -> ParityReport:
    """A model or engine against PyTorch with the same weights, size by size.

    A result outside its bound is not raised: ask `passed`. images: a folder of photos; left out:
    scikit-image's, else synthetic ones. checkpoint: where the exported weights are now. backend,

    provider, threads: see `Session.open`.
    Raises `ArtifactError`, `CheckpointError`, `ImageError`, `MissingDependencyError`.

    >>> report = rest_deploy.verify_model("build/rest_nano.onnx", sizes=[(64, 96)], batches=[2])
    >>> report.passed, report.results[0].relative_error < 1e-5
    (True, True)
    """
    return verbs.verify(
        path_of(model),
        workspace=artifact.workspace(path_of(workspace)),
        reference=reference,
        sizes=sizes,
        batches=batches,
        images=path_of(images),
        checkpoint=path_of(checkpoint),
        threads=threads,
        backend=backend,
        provider=provider,
    )
