"""Sizes and batches that will come -> the fewest profiles that keep within a memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rest_deploy.contracts import Dims, Profile
from rest_deploy.errors import InputError

Size = tuple[int, int]
Scratch = Callable[[Dims], int]
"""Bytes of scratch memory at a shape."""


def plan_profiles(
    sizes: Sequence[Size], batches: tuple[int, int], scratch: Scratch, memory: int | None
) -> tuple[Profile, ...]:
    """Every size (height, width) with every batch from the first to the second of `batches`.

    A context needs the scratch memory of its largest profile, and a profile that of its largest
    height with its largest width, also where no image has both. Sizes are therefore grouped as long
    as the group stays within `memory` bytes; None: within what the neediest size takes alone.
    Raises `InputError` when one size alone needs more, with the batch that would fit.
    """
    least, most = batches
    ordered = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    alone = {size: scratch((most, 3, *size)) for size in ordered}
    worst = max(ordered, key=alone.__getitem__)
    limit = alone[worst] if memory is None else memory
    if alone[worst] > limit:
        raise InputError(
            f"{most} images of {worst[0]}x{worst[1]} need about {alone[worst] / 1e9:.2f} GB of "
            f"scratch memory, --memory allows {limit / 1e9:.2f} GB",
            hint=_smaller(worst, most, scratch, limit),
        )
    groups: list[list[Size]] = []
    for size in ordered:
        together = [*groups[-1], size] if groups else [size]
        if groups and scratch((most, 3, *_largest(together))) <= limit:
            groups[-1] = together
        else:
            groups.append([size])
    return tuple(_profile(group, least, most) for group in groups)


def _profile(group: list[Size], least: int, most: int) -> Profile:
    """Tuned for the middle size and the geometric middle of the batches."""
    middle = group[len(group) // 2]
    smallest = (min(height for height, _ in group), min(width for _, width in group))
    return Profile(
        minimum=(least, 3, *smallest),
        optimum=(round(math.sqrt(least * most)), 3, *middle),
        maximum=(most, 3, *_largest(group)),
    )


def _largest(group: list[Size]) -> Size:
    return max(height for height, _ in group), max(width for _, width in group)


def _smaller(size: Size, most: int, scratch: Scratch, limit: int) -> str:
    fitting = next((n for n in range(most, 0, -1) if scratch((n, 3, *size)) <= limit), 0)
    if fitting:
        return f"--expect-batches up to {fitting}, or more --memory"
    return "more --memory: not even one image of that size fits"
