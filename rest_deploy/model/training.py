"""What a checkpoint says of the images it was trained on: a hint, where it says anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PLACES = ("args", "pretrained_cfg", "hyper_parameters")
"""The official script's and timm's arguments, timm's model configuration, Lightning's."""

SIZES = ("input_size", "img_size")


@dataclass(frozen=True)
class Training:
    """size: side of the square images in pixels, 0: unknown. crop_pct: size / side of the resized
    image, 0: unknown. mean, std: () where unknown. source: the entry that says so."""

    size: int = 0
    crop_pct: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    source: str = ""


NOTHING = Training()


def training_of(content: Mapping[object, object]) -> Training:
    """Of the first entry that names an image size; `NOTHING` where there is none."""
    for place, values in _settings(content):
        for name in SIZES:
            size = _side(values.get(name))
            if size:
                return Training(
                    size,
                    _number(values.get("crop_pct")),
                    _triple(values.get("mean")),
                    _triple(values.get("std")),
                    f"{place}.{name}",
                )
    return NOTHING


def _settings(content: Mapping[object, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for place in PLACES:
        found = content.get(place)
        if isinstance(found, argparse.Namespace):
            yield place, vars(found)
        elif isinstance(found, Mapping):
            yield place, {str(key): value for key, value in found.items()}


def _side(value: object) -> int:
    """224, (3, 224, 224) and (224, 224) are 224; anything else is 0: not square, or no size."""
    if isinstance(value, bool):
        return 0
    if isinstance(value, int):
        return max(value, 0)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (2, 3):
        height, width = value[-2:]
        return _side(height) if isinstance(height, int) and height == width else 0
    return 0


def _number(value: object) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    return float(value) if fits and isinstance(value, int | float) else 0.0


def _triple(value: object) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        return ()
    numbers = [float(one) for one in value if isinstance(one, int | float)]
    return tuple(numbers) if len(numbers) == 3 else ()
