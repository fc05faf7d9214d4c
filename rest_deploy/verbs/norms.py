"""How much of float64's answers the float32 model keeps at several sizes: InstanceNorm's doing.

The norm on the attention map amplifies rounding with the size of the image; the folded form does
not (docs/instance-norm.md). benchmarks/instance_norm.py compares all forms.
"""

from __future__ import annotations

from pathlib import Path

from rest_deploy.bench.record import NormError, NormErrors
from rest_deploy.bench.timers import Engine
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, images_for, load_reference, synthetic_images

SIZES = ((64, 64), (97, 131), (224, 224), (448, 448))


def norm_errors(
    export: Session, eager: Engine, checkpoint: Path | None, command: str
) -> NormErrors:
    """Of the first output, of the export and of PyTorch in float32, against PyTorch in float64, one
    image a size.

    eager: `model.eager.Eager` of the same weights. Raises what `load_reference` does.
    """
    from rest_deploy.model.reference import Reference

    metadata = export.metadata
    reference = Reference(load_reference(metadata, checkpoint), outputs=metadata.gives)
    make = images_for(metadata, synthetic_images)
    weights = "fresh" if export.metadata.weights.kind == "fresh" else "trained"
    rows = []
    for height, width in SIZES:
        images = make(Case(batch=1, height=height, width=width))
        exact = reference(images)
        answers = {
            metadata.instance_norm: export.run(export.feed(images)),
            "PyTorch eager": eager.run(images),
        }
        rows += [
            NormError(
                weights=weights,
                form=form,
                size=f"{height}x{width}",
                relative_error=relative_error(exact, answer),
            )
            for form, answer in answers.items()
        ]
    return NormErrors(command=command, rows=tuple(rows))
