"""Which variant, which weights, which preprocessing: what an export begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rest_deploy.cards import load_card
from rest_deploy.contracts import SMALLEST_SIDE, ModelCard, Preprocessing
from rest_deploy.errors import InputError
from rest_deploy.preprocess import at_size

if TYPE_CHECKING:
    from rest_deploy.model.checkpoint import Checkpoint
    from rest_deploy.model.training import Training

WARPED_FROM = 384
"""The official evaluation squeezes an image to a square of this size or more, without a crop."""


@dataclass(frozen=True)
class Source:
    """card: with the preprocessing that was asked for. notes: what was found and guessed, in words;
    warnings: what of it may be wrong."""

    card: ModelCard
    checkpoint: Checkpoint | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def choose(
    variant: str | ModelCard | None,
    checkpoint: Path | None,
    *,
    key: str | None = None,
    input_size: int | None = None,
    resize: int | None = None,
) -> Source:
    """Read the checkpoint and take its card. variant: None to tell it from the checkpoint.

    input_size, resize: pixels, instead of the card's crop and resize; None: what the checkpoint
    says of its training, else the card's. A card that is given as a value stays as it is.
    Raises `InputError` (nothing to tell the variant from, a size that is too small), `CardError`,
    `CheckpointError`.
    """
    from rest_deploy.model.checkpoint import read_checkpoint
    from rest_deploy.model.fit import guess

    if variant is None and checkpoint is None:
        raise InputError(
            "neither a variant nor a checkpoint to tell it from",
            hint="--variant V for fresh weights, or --checkpoint F",
        )
    card = load_card(variant) if isinstance(variant, str) else variant
    read = None if checkpoint is None else read_checkpoint(checkpoint, key)
    notes: list[str] = [] if read is None else list(read.notes)
    warnings: list[str] = []
    if card is None:
        assert read is not None
        told = guess(read.state, read.where)
        card = told.card
        notes.insert(0, told.why)
    given = isinstance(variant, ModelCard)
    if read is not None and not given:
        size, said, doubts = _trained_at(card.preprocessing, read.training, input_size, resize)
        input_size = input_size or size
        notes += said
        warnings += doubts
    if input_size is not None or resize is not None:
        changed = at_size(card.preprocessing, input_size, resize)
        card = msgspec.structs.replace(card, preprocessing=changed)
    return Source(card, read, tuple(notes), tuple(warnings))


def _trained_at(
    preprocessing: Preprocessing, training: Training, input_size: int | None, resize: int | None
) -> tuple[int | None, list[str], list[str]]:
    """The size that the checkpoint names, None where it is the one anyway; notes and warnings."""
    if not training.source:
        return None, [], []
    doubts = []
    for name in ("mean", "std"):
        told, ours = getattr(training, name), getattr(preprocessing, name)
        if told and any(abs(one - other) > 1e-3 for one, other in zip(told, ours, strict=True)):
            doubts.append(
                f"the checkpoint says it was trained with {name} {list(told)}, the card normalizes "
                f"with {list(ours)}: a card of your own (--variant CARD.toml) changes that"
            )
    said = f"{training.source} of the checkpoint is {training.size}"
    if input_size is not None:
        overridden = (
            [] if input_size == training.size else [f"{said}; --input-size is {input_size}"]
        )
        return None, overridden, doubts
    if training.size < SMALLEST_SIDE:
        return None, [], [*doubts, f"{said}, less than {SMALLEST_SIDE}: not taken"]
    taken = at_size(preprocessing, training.size, resize)
    notes = []
    if taken.crop != preprocessing.crop:
        notes.append(f"input size {taken.crop}, resized to {taken.resize}: {said}")
    if resize is None and training.crop_pct:
        theirs = int(training.size / training.crop_pct)
        if theirs != taken.resize:
            notes.append(
                f"its crop_pct {training.crop_pct:g} resizes to {theirs}, this to {taken.resize}: "
                f"--resize {theirs} for theirs"
            )
    if training.size >= WARPED_FROM and training.source.startswith("args."):
        notes.append(
            f"the official script evaluates at {training.size} by squeezing the whole image to a "
            "square; here its middle is cut out"
        )
    return taken.crop, notes, doubts
