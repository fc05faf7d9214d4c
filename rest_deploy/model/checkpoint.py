"""Checkpoint file -> module, strictly: every name and shape fits, every value is finite.

Where in the file the weights are: naming.py; which variant they are of: fit.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rest_deploy.artifact import sha256_file
from rest_deploy.contracts import ModelCard, Weights
from rest_deploy.errors import CheckpointError
from rest_deploy.model import fit, naming, weights_file
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.family import build
from rest_deploy.model.training import NOTHING, PLACES, Training, training_of

LABELS_FIELD = weights_file.LABELS_FIELD


@dataclass(frozen=True)
class Checkpoint:
    """A file's weights as found: official names, original types, on the CPU.

    `key` is the entry the weights were taken from, "" for a plain state dict; `place` has the
    prefix of their names too. `notes`: what was chosen and what was left out, in words.
    `output_norms`: of a detector's or a segmenter's backbone, not part of `state`. `training`: what
    the file says of how it was trained.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    key: str
    labels: tuple[str, ...]
    place: str = "."
    notes: tuple[str, ...] = ()
    output_norms: dict[str, Tensor] = field(default_factory=dict)
    training: Training = NOTHING

    @property
    def num_classes(self) -> int:
        """Rows of the head, 0 when there is none."""
        return fit.classes_of(self.state)

    @property
    def where(self) -> str:
        """The file, and the place in it unless it is the top; for messages."""
        return str(self.path) if self.place == "." else f"{self.path} [{self.place}]"


@dataclass(frozen=True)
class LoadedModel:
    """A float32 module in eval mode and where its weights come from.

    pooled: whether it has the norm before the mean over the tokens, without which it gives no
    embedding, only feature maps. card: with the preprocessing the weights expect. notes, warnings:
    what was found and left out in the file, in words.
    """

    module: Backbone
    num_classes: int
    weights: Weights
    labels: tuple[str, ...]
    card: ModelCard
    pooled: bool = True
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read .pth/.pt/.ckpt (any pickle that holds only tensors and containers) or .safetensors.

    key: the entry, or the dotted place, of the weights; None: averaged ones before others.
    Raises `CheckpointError` for a missing, truncated, foreign or unsafe file, and where it holds
    several models and nothing says which is meant.
    """
    content, labels = weights_file.read(path)
    entries = weights_file.entries(content)
    if not entries:
        raise CheckpointError(
            f"{path} holds no state dict; entries: {_short(content)}",
            hint="--checkpoint-key names the entry with the weights",
        )
    try:
        found = naming.find(entries)
    except naming.CollisionError as error:
        raise CheckpointError(
            f"{path} names a weight twice: {error}",
            hint="save the state dict of the model alone",
        ) from error
    digest, training = sha256_file(path), training_of(content)
    if not found:
        return _foreign(path, digest, content, entries, key, labels)
    chosen = _choose(found, entries, path, key, content)
    return Checkpoint(
        path=path,
        sha256=digest,
        state={own: entries[chosen.key][name] for own, name in chosen.names.items()},
        key=chosen.key if key is None or key == chosen.key else chosen.place,
        labels=labels,
        place=chosen.place,
        notes=_notes(chosen, found, entries, content),
        output_norms={own: entries[chosen.key][name] for own, name in chosen.output_norms.items()},
        training=training,
    )


def load_model(
    card: ModelCard,
    checkpoint: Checkpoint | None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """The card's module with the checkpoint's weights, or fresh ones from `seed`.

    With a checkpoint the class count is read from its head; `num_classes` must agree or be None.
    Raises `CheckpointError` listing every name that does not fit, and the variant that would.
    """
    if checkpoint is None:
        classes = card.head.num_classes if num_classes is None else num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build(card.architecture, classes).eval()
        weights = Weights(kind="fresh", state_sha256=state_sha256(module.state_dict()), seed=seed)
        return LoadedModel(module, classes, weights, (), card)
    classes = checkpoint.num_classes
    if num_classes is not None and num_classes != classes:
        raise CheckpointError(
            f"{checkpoint.path} has a head for {classes} classes, --num-classes says {num_classes}",
            hint="leave --num-classes out: it is read from the checkpoint",
        )
    fit.check_fit(card, checkpoint.state, checkpoint.where)
    module = build(card.architecture, classes)
    _with_output_norms(module, checkpoint, card)
    state = {**checkpoint.state, **checkpoint.output_norms}
    fit.check_values(state, checkpoint.where)
    module.eval().load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    weights = Weights(
        kind="checkpoint",
        state_sha256=state_sha256(module.state_dict()),
        sha256=checkpoint.sha256,
        path=str(checkpoint.path.resolve()),
        key=checkpoint.key,
    )
    pooled = fit.LAST_NORM[0] in checkpoint.state
    return LoadedModel(
        module,
        classes,
        weights,
        checkpoint.labels,
        card,
        pooled,
        checkpoint.notes,
    )


def _with_output_norms(module: Backbone, checkpoint: Checkpoint, card: ModelCard) -> None:
    """Give it the norms of a detector's backbone. Raises `CheckpointError` for others."""
    norms, dims = checkpoint.output_norms, card.architecture.dims
    names = list(dict.fromkeys(name.partition(".")[0] for name in norms))
    foreign = [name for name in names if name not in module.OUTPUT_NORMS]
    if foreign:
        raise CheckpointError(
            f"{checkpoint.where} does not fit variant {card.variant!r}: unexpected "
            f"{', '.join(foreign)}; its norms of outputs are {', '.join(module.OUTPUT_NORMS)}"
        )
    fit.check_norms(norms, {name: dims[module.OUTPUT_NORMS.index(name)] for name in names},
                    checkpoint.where)  # fmt: skip
    module.add_output_norms(names, dims)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and float32 values, in name order; counters are left out."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if naming.is_counter(name):
            continue
        value = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


Entries = Mapping[str, Mapping[str, Tensor]]


def _choose(
    found: Sequence[naming.Found],
    entries: Entries,
    path: Path,
    key: str | None,
    content: Mapping[object, object],
) -> naming.Found:
    candidates = list(found) if key is None else naming.named(found, key)
    if not candidates:
        raise _no_entry(path, key, content, [one.place for one in found])
    first = naming.best(candidates, [one.place for one in found if _never(one, entries)])
    if all(_equal(one, first[0], entries) for one in first[1:]):
        return min(first, key=lambda one: len(one.place))
    places = ", ".join(one.place for one in first)
    raise CheckpointError(
        f"{path} holds {len(first)} models, and nothing says which is meant: {places}",
        hint=f"--checkpoint-key {first[0].place} takes that one",
    )


def _never(one: naming.Found, entries: Entries) -> bool:
    """Whether it is an average of no model yet."""
    if one.counter is None:
        return False
    entry, name = one.counter
    value = entries[entry][name]
    return value.numel() == 1 and not value.is_meta and int(value) == 0


def _equal(one: naming.Found, other: naming.Found, entries: Entries) -> bool:
    """One model under two names, as where a module holds it twice."""
    if one.names.keys() != other.names.keys():
        return False
    ours, theirs = entries[one.key], entries[other.key]
    pairs = [(ours[name], theirs[other.names[own]]) for own, name in one.names.items()]
    return all(
        value.layout == torch.strided and not value.is_meta
        for pair in pairs for value in pair
    ) and all(torch.equal(*pair) for pair in pairs)  # fmt: skip


def _notes(
    chosen: naming.Found,
    found: Sequence[naming.Found],
    entries: Entries,
    content: Mapping[object, object],
) -> tuple[str, ...]:
    """What of the file was taken and what was left out."""
    notes = []
    if chosen.averaged:
        live = [one.place for one in found if not one.averaged]
        others = f"; --checkpoint-key {live[0]} takes the others" if live else ""
        notes.append(f"averaged weights (EMA) of {chosen.place}{others}")
    elif chosen.place != ".":
        notes.append(f"weights of {chosen.place}")
    notes += [
        f"left out {one.place}, an average of no model yet (n_averaged 0)"
        for one in found
        if one is not chosen and _never(one, entries)
    ]
    norms = list(dict.fromkeys(name.partition(".")[0] for name in chosen.output_norms))
    if norms:
        notes.append(f"norms of the stages' outputs, as detectors have them: {', '.join(norms)}")
    left = naming.groups(chosen)
    if left:
        notes.append(f"left out {', '.join(left)}")
    taken = chosen.key.partition(".")[0]
    beside = [str(name) for name, value in content.items()
              if taken and isinstance(value, Mapping) and name not in (taken, *PLACES)]  # fmt: skip
    if beside:
        notes.append(f"not read: {', '.join(beside)}")
    return tuple(notes)


def _foreign(
    path: Path,
    digest: str,
    content: Mapping[object, object],
    entries: Entries,
    key: str | None,
    labels: tuple[str, ...],
) -> Checkpoint:
    """A state dict without the names of a ResT, which is then refused with what is missing."""
    known = [name for name in (*naming.STATE_KEYS, "") if name in entries]
    if key is not None:
        if key not in entries:
            raise _no_entry(path, key, content, [])
        known = [key]
    taken = known[0] if known else max(entries, key=lambda name: len(entries[name]))
    return Checkpoint(path, digest, dict(entries[taken]), taken, labels)


def _no_entry(
    path: Path, key: str | None, content: Mapping[object, object], places: Collection[str]
) -> CheckpointError:
    found = f"; models are at: {', '.join(places)}" if places else ""
    return CheckpointError(f"{path} has no entry {key!r}; it has: {_short(content)}{found}")


def _short(content: Mapping[object, object]) -> str:
    return ", ".join(map(str, content))[:300]
