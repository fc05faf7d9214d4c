"""Shapes that will come -> the fewest profiles that keep within a memory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rest_deploy.contracts import Dims, Profile, Struct
from rest_deploy.engine.partition import Box, common, fewest, inside, maximal, volume
from rest_deploy.engine.profiles import profile_for
from rest_deploy.errors import InputError, InvariantError

Size = tuple[int, int]
Scratch = Callable[[Dims], int]
"""Bytes of scratch memory at a shape. A larger shape never needs less."""

NAMED = 8
"""Shapes left out that a line names."""


@dataclass(frozen=True)
class Expected:
    """`count` requests of one size in pixels, in batches from `least` to `most`, mostly `usual`."""

    height: int
    width: int
    least: int
    usual: int
    most: int
    count: int = 1

    def shape(self, batch: int) -> Dims:
        return (batch, 3, self.height, self.width)

    @property
    def box(self) -> Box:
        return (self.most, self.height, self.width)


class Outlier(Struct, frozen=True):
    """A shape no profile holds. `share`: of all requests, 0 to 1."""

    height: int
    width: int
    batch: int
    requests: int
    share: float


class Serving(Struct, frozen=True):
    """Who serves the expected requests. One entry a profile: `served` requests, `shares` of all (0
    to 1). What is not in `left_out` is held: requests = sum(served) + sum over `left_out`."""

    requests: int
    shapes: int
    served: tuple[int, ...]
    shares: tuple[float, ...]
    left_out: tuple[Outlier, ...]


@dataclass(frozen=True)
class Plan:
    profiles: tuple[Profile, ...]
    left_out: tuple[Expected, ...]


def plan_profiles(
    sizes: Sequence[Size], batches: tuple[int, int], scratch: Scratch, memory: int | None
) -> tuple[Profile, ...]:
    """Every size (height, width) with every batch from the first to the second of `batches`.

    See `plan`; all sizes are as frequent. Raises `InputError` when one size alone needs more than
    `memory`, with the batch that would fit.
    """
    least, most = batches
    usual = round(math.sqrt(least * most))
    expected = [Expected(*size, least, usual, most) for size in sorted(set(sizes))]
    needs = {one: scratch(one.shape(most)) for one in expected}
    worst = max(expected, key=needs.__getitem__)
    if memory is not None and needs[worst] > memory:
        raise _more_than(worst, needs[worst], memory, _smaller(worst, scratch, memory))
    return plan(expected, scratch, memory).profiles


def plan(
    expected: Sequence[Expected], scratch: Scratch, memory: int | None, spare: int = 0
) -> Plan:
    """The fewest profiles for what is expected, each within `memory` bytes of scratch.

    A context needs the scratch memory of its largest profile, and a profile that of its largest
    batch, height and width together, also where no request has them all. Without `memory` the limit
    is what the neediest request takes alone. "Fewest" is exact with one range of batches for all
    sizes, and for up to ten shapes that are inside no other; see `partition.fewest`.

    A shape belongs to the smallest profile that holds it. Each profile is tuned for that one of its
    shapes with the least expected distance to its requests, the sum over the axes of |log ratio|,
    which is the measure `profile_for` chooses by. A shape with half of the requests is always the
    one; where none has so many, the most frequent may be far from all others, and this one is not.
    Of two as close it is the more frequent, then the larger.

    spare: so many requests may be left out. First what alone needs more than `memory`; then, of the
    shapes inside no other (others cost nothing), the one with the most pixels a request, as long as
    there is spare. What fits back without another profile or more memory comes back. A heuristic:
    other requests left out might save more. Raises `InputError` when a shape that may not be left
    out needs more than `memory` alone.
    """
    found = {one.box: one for one in expected}
    if len(found) != len(expected):
        raise InvariantError("two expected shapes are the same: add their counts up")
    fits = None if memory is None else Limit(scratch, memory)
    left = _outliers(found, spare, fits)
    kept = maximal(found.keys() - left)
    if fits is None:
        fits = Limit(scratch, max(scratch(found[box].shape(box[0])) for box in kept))
    elif beyond := [box for box in kept if not fits(box)]:
        raise _too_much(found, beyond, scratch, fits)
    groups = fewest(kept, fits)
    refused: list[Box] = []
    for box in sorted(left, key=volume):
        if fits(box) and not any(inside(other, box) for other in refused):
            with_it = fewest([*kept, box], fits)
            if len(with_it) <= len(groups):
                groups, kept = with_it, maximal([*kept, box])
                left.remove(box)
                continue
        refused.append(box)
    boxes = sorted(common(group) for group in groups)
    members: dict[Box, list[Expected]] = {box: [] for box in boxes}
    for box in found.keys() - left:
        holding = [other for other in boxes if inside(box, other)]
        members[min(holding, key=volume)].append(found[box])
    return Plan(
        profiles=tuple(_profile(members[box]) for box in boxes),
        left_out=tuple(found[box] for box in sorted(left, key=volume, reverse=True)),
    )


def serving(made: Plan, expected: Sequence[Expected]) -> Serving:
    """What share of the requests each profile gets at run time, by `profile_for`.

    Raises `InvariantError` when no profile holds one that was not left out.
    """
    out = set(made.left_out)
    total = sum(one.count for one in expected)
    served = [0] * len(made.profiles)
    for one in expected:
        if one in out:
            continue
        ends = (one.shape(one.least), one.shape(one.most))
        if not any(all(map(profile.holds, ends)) for profile in made.profiles):
            raise InvariantError(f"no planned profile holds {one}")
        served[profile_for(made.profiles, one.shape(one.usual))] += one.count
    return Serving(
        requests=total,
        shapes=len(expected),
        served=tuple(served),
        shares=tuple(count / total for count in served),
        left_out=tuple(
            Outlier(height=one.height, width=one.width, batch=one.most, requests=one.count,
                    share=one.count / total)
            for one in made.left_out
        ),
    )  # fmt: skip


def describe_left_out(found: Serving) -> str:
    """One line; the rarest of many are only counted."""
    most = sorted(found.left_out, key=lambda one: -one.requests)
    shown = ", ".join(
        f"{one.batch}x3x{one.height}x{one.width} ({one.share:.2%})" for one in most[:NAMED]
    )
    more = f" and {len(most) - NAMED} more" if len(most) > NAMED else ""
    share = sum(one.share for one in most)
    return f"left out, {share:.2%} of the requests: {shown}{more}"


class Limit:
    """Whether a box keeps within `limit` bytes. An estimate takes milliseconds and a histogram has
    thousands of boxes: what follows from others is not asked, as a larger one never needs less."""

    def __init__(self, scratch: Scratch, limit: int) -> None:
        self.limit = limit
        self._scratch = scratch
        self._within: list[Box] = []
        self._beyond: list[Box] = []

    def __call__(self, box: Box) -> bool:
        if any(inside(box, known) for known in self._within):
            return True
        if any(inside(known, box) for known in self._beyond):
            return False
        batch, height, width = box
        fits = self._scratch((batch, 3, height, width)) <= self.limit
        if fits:
            self._within = [*(known for known in self._within if not inside(known, box)), box]
        else:
            self._beyond = [*(known for known in self._beyond if not inside(box, known)), box]
        return fits


def _outliers(found: dict[Box, Expected], spare: int, fits: Limit | None) -> set[Box]:
    """What `spare` requests are first tried without."""
    left: set[Box] = set()
    front = maximal(found) if spare else []
    while able := [box for box in front if found[box].count <= spare]:
        beyond = [] if fits is None else [box for box in able if not fits(box)]
        gone = max(beyond or able, key=lambda box: (volume(box) / found[box].count, box))
        left.add(gone)
        spare -= found[gone].count
        front.remove(gone)
        below = [box for box in found.keys() - left if inside(box, gone)]
        front += [box for box in maximal(below) if not any(inside(box, other) for other in front)]
    return left


def _profile(group: list[Expected]) -> Profile:
    height, width = min(one.height for one in group), min(one.width for one in group)
    middle = _middle(group)
    batch, *largest = common(one.box for one in group)
    return Profile(
        minimum=(min(one.least for one in group), 3, height, width),
        optimum=middle.shape(middle.usual),
        maximum=(batch, 3, largest[0], largest[1]),
    )


def _middle(group: list[Expected]) -> Expected:
    """The weighted medoid; see `plan`."""
    places = np.log([(one.usual, one.height, one.width) for one in group])
    weights = np.array([one.count for one in group], dtype=np.float64)
    weights /= weights.sum()

    def rank(index: int) -> tuple[float, int, int, Box]:
        one = group[index]
        distance = float(np.abs(places - places[index]).sum(axis=1) @ weights)
        return -round(distance, 9), one.count, volume(one.box), one.box

    return group[max(range(len(group)), key=rank)]


def _too_much(
    found: dict[Box, Expected], beyond: list[Box], scratch: Scratch, fits: Limit
) -> InputError:
    needs = {box: scratch(found[box].shape(box[0])) for box in beyond}
    worst = max(beyond, key=lambda box: (needs[box], box))
    total = sum(one.count for one in found.values())
    # In no order: then what is known of a few boxes tells most others.
    mixed = random.Random(0).sample(sorted(found), len(found))
    large = sum(found[box].count for box in mixed if not fits(box))
    keeps = math.floor(10_000 * (total - large) / total) / 100
    hint = f"--memory {math.ceil(100 * needs[worst] / (1 << 30)) / 100:g}"
    if keeps > 0:
        hint += f", or --expect-coverage {keeps:g}: {large} of {total} requests need too much alone"
    return _more_than(found[worst], needs[worst], fits.limit, hint)


def _more_than(one: Expected, needs: int, limit: int, hint: str) -> InputError:
    return InputError(
        f"{one.most} images of {one.height}x{one.width} need about {needs / 1e9:.2f} GB of "
        f"scratch memory, --memory allows {limit / 1e9:.2f} GB",
        hint=hint,
    )


def _smaller(one: Expected, scratch: Scratch, limit: int) -> str:
    fitting = next((n for n in range(one.most, 0, -1) if scratch(one.shape(n)) <= limit), 0)
    if fitting:
        return f"--expect-batches up to {fitting}, or more --memory"
    return "more --memory: not even one image of that size fits"
