"""Checkpoint file -> tensors as they stand there. Nothing is unpickled beyond tensors and plain
containers (`weights_only`)."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rest_deploy.errors import CheckpointError

LABELS_FIELD = "rest_deploy.labels"
"""safetensors metadata: JSON array of class names, in class order."""

DEEPEST = 5
"""Levels of dictionaries that are searched."""


def read(path: Path) -> tuple[Mapping[object, object], tuple[str, ...]]:
    """The file's dictionary and its class names, () where it has none.

    Raises `CheckpointError` for a missing, truncated, foreign or unsafe file.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a state dict (name -> tensor)"
        )
    return content, ()


def entries(content: Mapping[object, object]) -> dict[str, dict[str, Tensor]]:
    """Every dictionary in `content` that has tensors: its dotted path, "" for the top, -> them."""
    return dict(_entries(content, "", 0))


def _entries(
    content: Mapping[object, object], path: str, depth: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    own = {key: value for key, value in content.items()
           if isinstance(key, str) and isinstance(value, Tensor)}  # fmt: skip
    if own:
        yield path, own
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth < DEEPEST:
            yield from _entries(value, f"{path}.{key}" if path else key, depth + 1)


def _read_safetensors(path: Path) -> tuple[Mapping[object, object], tuple[str, ...]]:
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
    # Training scripts store their argparse.Namespace beside the weights.
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
            hint="where you trust it, save the state dict alone: "
            "torch.save(model.state_dict(), 'weights.pth')",
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return CheckpointError(
        f"{path} is not a complete PyTorch checkpoint: {first_line}",
        hint="expected a .pth written by torch.save, or .safetensors",
    )
