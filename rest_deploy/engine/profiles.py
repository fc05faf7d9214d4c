"""Which input shapes an engine is built for: trtexec's words, defaults, checks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rest_deploy.contracts import SMALLEST_SIDE, Dims, Preprocessing, Profile
from rest_deploy.errors import InputError, ShapeError

LARGEST_BATCH = 32
USUAL_BATCH = 8

LEAST = (1, 3, SMALLEST_SIDE, SMALLEST_SIDE)


def parse_shape(text: str) -> Dims:
    """ "8x3x224x224" -> (8, 3, 224, 224): batch, channels, height, width. Raises `InputError`."""
    match = re.fullmatch(r"(?:image:)?(\d{1,5})x3x(\d{1,5})x(\d{1,5})", text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a shape; expected BATCHx3xHEIGHTxWIDTH, as 8x3x224x224")
    batch, height, width = map(int, match.groups())
    return (batch, 3, height, width)


def default_profiles(preprocessing: Preprocessing) -> tuple[Profile, ...]:
    """One: up to 32 images of up to the card's size, tuned for 8 of exactly that."""
    side = preprocessing.crop
    return (
        Profile(
            minimum=LEAST,
            optimum=(USUAL_BATCH, 3, side, side),
            maximum=(LARGEST_BATCH, 3, side, side),
        ),
    )


def profiles_from(
    minima: Sequence[str], optima: Sequence[str], maxima: Sequence[str], card: Preprocessing
) -> tuple[Profile, ...]:
    """--min-shapes, --opt-shapes and --max-shapes, one of each a profile.

    None at all: `default_profiles`. --max-shapes alone: from the smallest to it, tuned for it.
    Raises `InputError` for counts that differ and shapes out of order.
    """
    if not (minima or optima or maxima):
        return default_profiles(card)
    count = len(maxima)
    if not count:
        raise InputError("--min-shapes or --opt-shapes without --max-shapes")
    for option, given in (("--min-shapes", minima), ("--opt-shapes", optima)):
        if given and len(given) != count:
            raise InputError(
                f"{len(given)} {option} and {count} --max-shapes; expected as many, one of each a "
                "profile"
            )
    most = [parse_shape(text) for text in maxima]
    best = [parse_shape(text) for text in optima] or most
    least = [parse_shape(text) for text in minima] or [LEAST] * count
    try:
        return tuple(
            Profile(minimum=low, optimum=middle, maximum=high)
            for low, middle, high in zip(least, best, most, strict=True)
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def profile_for(profiles: Sequence[Profile], shape: Dims) -> int:
    """Index of the profile for `shape`: of those that hold it, the one tuned closest to it.

    Raises `ShapeError` naming the nearest profile when none does.
    """
    holding = [index for index, profile in enumerate(profiles) if profile.holds(shape)]
    if holding:
        return min(holding, key=lambda index: _distance(profiles[index].optimum, shape))
    nearest = min(profiles, key=lambda profile: _outside(profile, shape))
    raise ShapeError(
        f"the engine takes no {_words(shape)}; nearest of its {len(profiles)} profiles: "
        f"{_words(nearest.minimum)} to {_words(nearest.maximum)}",
        hint=f"rest-deploy build-engine --max-shapes {_words(_union(nearest.maximum, shape))} …",
    )


def describe(profile: Profile) -> str:
    """ "1x3x32x32 to 32x3x224x224, tuned for 8x3x224x224" """
    return (
        f"{_words(profile.minimum)} to {_words(profile.maximum)}, "
        f"tuned for {_words(profile.optimum)}"
    )


def _words(shape: Dims) -> str:
    return "x".join(map(str, shape))


def _union(one: Dims, other: Dims) -> Dims:
    return (max(one[0], other[0]), 3, max(one[2], other[2]), max(one[3], other[3]))


def _distance(optimum: Dims, shape: Dims) -> float:
    """Of two shapes, as a ratio on each axis."""
    ratio = 1.0
    for one, other in zip(optimum, shape, strict=True):
        ratio *= max(one, other) / min(one, other)
    return ratio


def _outside(profile: Profile, shape: Dims) -> float:
    """How far `shape` is outside: 1 inside, a ratio on each axis beyond."""
    ratio = 1.0
    for low, value, high in zip(profile.minimum, shape, profile.maximum, strict=True):
        ratio *= max(low / value, value / high, 1.0)
    return ratio
