"""Checkpoint file -> module, strictly: every name and shape fits, every value is finite.

Nothing is unpickled beyond tensors and plain containers (`weights_only`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rest_deploy.artifact import sha256_file
from rest_deploy.cards import available
from rest_deploy.contracts import ModelCard, Weights
from rest_deploy.errors import CheckpointError
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.family import build

STATE_KEYS = ("model_ema", "state_dict_ema", "ema", "model", "state_dict")
"""Where training scripts put the weights; averaged (EMA) weights come first."""

PREFIXES = ("module.", "_orig_mod.")
"""Left by DistributedDataParallel and torch.compile."""

LABELS_FIELD = "rest_deploy.labels"
"""safetensors metadata: JSON array of class names, in class order."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's weights as found: official names, original types, on the CPU.

    `key` is the entry the weights were taken from, "" for a plain state dict.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    key: str
    labels: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Rows of the head, 0 when there is none."""
        head = self.state.get("head.weight")
        return int(head.shape[0]) if head is not None and head.dim() == 2 else 0


@dataclass(frozen=True)
class LoadedModel:
    """A float32 module in eval mode and where its weights come from."""

    module: Backbone
    num_classes: int
    weights: Weights
    labels: tuple[str, ...]


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read .pth/.pt (any pickle that holds only tensors and containers) or .safetensors.

    Raises `CheckpointError` for a missing, truncated, foreign or unsafe file.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    content: object
    labels: tuple[str, ...] = ()
    if path.suffix == ".safetensors":
        content, labels = _read_safetensors(path)
    else:
        content = _read_pickle(path)
    state, used = _find_state(content, path, key)
    return Checkpoint(path, sha256_file(path), _strip(state), used, labels)


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
        return LoadedModel(module, classes, weights, ())
    classes = checkpoint.num_classes
    if num_classes is not None and num_classes != classes:
        raise CheckpointError(
            f"{checkpoint.path} has a head for {classes} classes, --num-classes says {num_classes}",
            hint="leave --num-classes out: it is read from the checkpoint",
        )
    _check_fit(card, checkpoint, classes)
    _check_values(checkpoint)
    module = build(card.architecture, classes).eval()
    module.load_state_dict({k: v.float() for k, v in checkpoint.state.items()}, strict=False)
    weights = Weights(
        kind="checkpoint",
        state_sha256=state_sha256(module.state_dict()),
        sha256=checkpoint.sha256,
        path=str(checkpoint.path.resolve()),
        key=checkpoint.key,
    )
    return LoadedModel(module, classes, weights, checkpoint.labels)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and float32 values, in name order; counters are left out."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if _is_counter(name):
            continue
        value = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def expected_shapes(card: ModelCard, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variant's state dict, without the BatchNorm counters."""
    with torch.device("meta"):
        module = build(card.architecture, num_classes)
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if not _is_counter(k)}


def fitting_variants(checkpoint: Checkpoint) -> list[str]:
    """Shipped variants whose names and shapes are exactly the checkpoint's."""
    return [
        card.variant
        for card in available().values()
        if not _misfits(expected_shapes(card, checkpoint.num_classes), checkpoint.state)
    ]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            metadata: dict[str, str] = stream.metadata() or {}
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return state, _labels(path, metadata.get(LABELS_FIELD, "[]"))


def _labels(path: Path, text: str) -> tuple[str, ...]:
    try:
        labels = json.loads(text)
    except json.JSONDecodeError:
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(
            f"{path}: the metadata {LABELS_FIELD} is not a JSON list of names: {text[:60]!r}"
        )
    return tuple(labels)


def _read_pickle(path: Path) -> object:
    # The official training script stores its argparse.Namespace beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content: object = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # foreign bytes make the unpickler raise anything
            raise _translated(path, error) from error
    return content


def _translated(path: Path, error: Exception) -> CheckpointError:
    refused = re.search(r"(?:GLOBAL|global|class) `?([\w]+\.[\w.]+)", str(error))
    if refused and "weights_only" in str(error):
        return CheckpointError(
            f"{path} holds more than tensors ({refused.group(1)}); loading it could run code",
            hint="save the state dict alone: torch.save(model.state_dict(), 'weights.pth')",
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return CheckpointError(
        f"{path} is not a complete PyTorch checkpoint: {first_line}",
        hint="expected a .pth written by torch.save, or .safetensors",
    )


def _find_state(content: object, path: Path, key: str | None) -> tuple[Mapping[str, Tensor], str]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a state dict (name -> tensor)"
        )
    if key is not None:
        if key not in content:
            raise CheckpointError(
                f"{path} has no entry {key!r}; it has: {', '.join(map(str, content))}"[:400]
            )
        candidates = [key]
    else:
        candidates = [name for name in STATE_KEYS if isinstance(content.get(name), Mapping)]
    for name in candidates:
        if _is_state(content[name]):
            return content[name], name
    if key is None and _is_state(content):
        return content, ""
    raise CheckpointError(
        f"{path} holds no state dict; entries: {', '.join(map(str, content))}"[:400],
        hint="--checkpoint-key names the entry with the weights",
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = dict(state)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def _check_fit(card: ModelCard, checkpoint: Checkpoint, classes: int) -> None:
    problems = _misfits(expected_shapes(card, classes), checkpoint.state)
    if not problems:
        return
    fitting = fitting_variants(checkpoint)
    shown = "; ".join(problems[:6])
    more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
    raise CheckpointError(
        f"{checkpoint.path} does not fit variant {card.variant!r}: {shown}{more}",
        hint=f"it fits: --variant {fitting[0]}" if fitting else "no known variant fits it",
    )


def _misfits(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> list[str]:
    found = {name: tuple(value.shape) for name, value in state.items() if not _is_counter(name)}
    return [
        *(f"missing {name}" for name in expected if name not in found),
        *(f"unexpected {name}" for name in found if name not in expected),
        *(
            f"{name} is {list(found[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
    ]


def _check_values(checkpoint: Checkpoint) -> None:
    bad = []
    for name, value in checkpoint.state.items():
        if _is_counter(name):
            continue
        if value.layout != torch.strided or value.is_meta:
            bad.append(f"{name} is not a plain tensor ({value.layout}, {value.device})")
        elif not value.is_floating_point():
            bad.append(f"{name} is {value.dtype}")
        elif not bool(torch.isfinite(value.float()).all()):
            bad.append(f"{name} has NaN or infinite values")
        elif name.endswith("running_var") and bool((value.float() < 0).any()):
            bad.append(f"{name} has a negative variance")
    if bad:
        raise CheckpointError(
            f"{checkpoint.path} has unusable weights: {'; '.join(bad[:5])}"
            + (f"; and {len(bad) - 5} more" if len(bad) > 5 else ""),
            hint="the training diverged, or the file is damaged",
        )


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
