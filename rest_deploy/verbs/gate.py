"""What the accuracy gate compares: real images, and what the reference answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from rest_deploy import photos
from rest_deploy.contracts import ModelMetadata
from rest_deploy.errors import CheckpointError, InputError, installed
from rest_deploy.preprocess import to_tensor
from rest_deploy.quant.dataset import open_set
from rest_deploy.runtime.session import Session
from rest_deploy.verify import gate
from rest_deploy.verify.parity import in_float32, load_reference, own_errors

GATE_IMAGES = 128
GATE_SEED = 1000
"""Of the photos' crops: none that calibration draws by default."""


@dataclass(frozen=True)
class GateData:
    """images: (N, 3, H, W) float32, normalized; labels: class of each, -1 where unknown."""

    images: npt.NDArray[np.float32]
    labels: tuple[int, ...]
    source: str


def gate_data(metadata: ModelMetadata, data: Path | None, count: int) -> GateData:
    """`data` (as for calibration; folders named like labels are classes), or held-out photos.

    Raises `InputError` when there is neither.
    """
    preprocessing = metadata.card.preprocessing
    if data is not None:
        found = open_set(data, preprocessing, limit=count, seed=GATE_SEED)
        images = np.stack([found.tensor(index) for index in range(len(found))])
        labels = [_label(identity, metadata.labels) for identity in found.manifest.ids]
        return GateData(images, tuple(labels), f"{len(images)} images of {data}")
    if not photos.available():
        raise InputError(
            "no images for the accuracy gate: scikit-image, whose photos are the default, is not "
            "installed",
            hint="--gate-data D, pip install 'rest-deploy[demo]', or --no-gate",
        )
    crops = photos.crops("test", count, GATE_SEED)
    images = np.stack([to_tensor(photos.load(crop), preprocessing) for crop in crops])
    known = metadata.labels == photos.LABELS
    labels = [crop.photo if known else -1 for crop in crops]
    return GateData(images, tuple(labels), f"{count} held-out crops of scikit-image's photos")


def reference_answers(
    source: Session, images: npt.NDArray[np.float32], checkpoint: Path | None
) -> tuple[dict[str, npt.NDArray[np.floating]], str]:
    """Every output of PyTorch in float64 where it and the weights are here, else of the float
    export, said so; see `gate.answers`.

    An export carries its own proof against float64; checkpoint: where the weights are now.
    """
    outputs = source.metadata.gives
    why = "PyTorch is not installed"
    if installed("torch"):
        from rest_deploy.model.reference import Reference

        try:
            module = load_reference(source.metadata, checkpoint)
        except CheckpointError as error:
            if checkpoint is not None:
                raise
            why = error.message
        else:
            exact = Reference(module, outputs=outputs).all
            return gate.answers(exact, images, outputs), "PyTorch float64"
    proven = source.sidecar.parity if source.sidecar else None
    if proven is None:
        raise InputError(
            f"no reference for the accuracy gate: {why}, and {source.path} has no parity proof",
            hint="--checkpoint F, or --no-gate",
        )
    name = f"the float export, within {proven.relative_error:.1e} of {proven.reference} ({why})"
    return gate.answers(source.run_normalized, images, outputs), name


def float32_errors(
    source: Session,
    images: npt.NDArray[np.float32],
    checkpoint: Path | None,
    exact: Mapping[str, npt.NDArray[np.floating]],
) -> dict[str, float]:
    """PyTorch's own error in float32 against `exact`, by output, on the same images.

    exact: of `reference_answers`. Where that is the float export, since PyTorch or the weights are
    not here, what the export's own proof had to allow; nothing (0) where it kept the card's bound.
    """
    outputs = source.metadata.gives
    if installed("torch"):
        try:
            module = load_reference(source.metadata, checkpoint)
        except CheckpointError:
            if checkpoint is not None:
                raise
        else:
            return own_errors(
                (exact, gate.answers(way, images, outputs)) for way in in_float32(module, outputs)
            )
    proven = source.sidecar.parity if source.sidecar else None
    error = None if proven is None else proven.float32_error
    return {output.name: error or 0.0 for output in outputs}


def _label(identity: str, labels: tuple[str, ...]) -> int:
    """Class of "cat/0.png" when a label is "cat", else -1."""
    folder = PurePosixPath(identity.replace("\\", "/")).parent.name
    return labels.index(folder) if folder in labels else -1
