"""Boxes -> the fewest groups whose common boxes still fit.

A box is the largest (batch, height, width) of a request. A profile for several has the largest of
each axis, so a group needs what its common box needs, also where no request is that large.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

Box = tuple[int, int, int]
"""(batch, height, width)."""

Fits = Callable[[Box], bool]
"""Whether a box may be a profile's. A box inside one that fits must fit too."""

EXACT = 10
"""Up to so many boxes all partitions are searched (115 975 of 10, most never tried)."""

Groups = list[list[Box]]


def inside(box: Box, other: Box) -> bool:
    return box[0] <= other[0] and box[1] <= other[1] and box[2] <= other[2]


def volume(box: Box) -> int:
    """Pixels, over the batch."""
    return box[0] * box[1] * box[2]


def common(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds them all."""
    batches, heights, widths = zip(*boxes, strict=True)
    return max(batches), max(heights), max(widths)


def maximal(boxes: Iterable[Box]) -> list[Box]:
    """Those inside no other, largest first. The others cost no group."""
    found: list[Box] = []
    for box in sorted(set(boxes), key=lambda box: (-volume(box), box)):
        if not any(inside(box, other) for other in found):
            found.append(box)
    return found


def fewest(boxes: Iterable[Box], fits: Fits) -> Groups:
    """The maximal ones of `boxes`, in as few groups as possible; of those with as many, the least
    volume in all. Every box must fit alone.

    Provably the fewest where the maximal boxes can be ordered so that one axis rises and the others
    fall (one batch for all sizes, or square images only): there what a group's box holds is a
    stretch of that order. Also for up to `EXACT` of any kind, by search. Beyond, the best of seven
    heuristics: of 600 random instances of 7 to 10 boxes two had a group too many.
    """
    front = maximal(boxes)
    ordered = _ordered(front)
    if ordered is not None:
        return _stretches(ordered, fits)
    if len(front) <= EXACT:
        return _search(front, fits)
    return _heuristic(front, fits)


def _ordered(front: list[Box]) -> list[Box] | None:
    """Along an axis, where both others fall as it rises; None if they do along no axis."""
    for axis, first, second in ((1, 0, 2), (2, 0, 1), (0, 1, 2)):
        found = sorted(front, key=lambda box: (box[axis], -box[first], -box[second]))
        if all(
            one[first] >= after[first] and one[second] >= after[second]
            for one, after in itertools.pairwise(found)
        ):
            return found
    return None


def _stretches(ordered: Sequence[Box], fits: Fits) -> Groups:
    """The best cut of a sequence into stretches."""
    best = [(0, 0, 0)]  # up to there: groups, volume, where the last one begins
    for end in range(1, len(ordered) + 1):
        box = ordered[end - 1]
        found = (best[end - 1][0] + 1, best[end - 1][1] + volume(box), end - 1)
        for start in range(end - 2, -1, -1):
            box = common((ordered[start], box))
            if not fits(box):
                break  # a longer one does not fit either
            count, total, _ = best[start]
            if (count + 1, total + volume(box)) < found[:2]:
                found = (count + 1, total + volume(box), start)
        best.append(found)
    groups: Groups = []
    end = len(ordered)
    while end:
        start = best[end][2]
        groups.insert(0, list(ordered[start:end]))
        end = start
    return groups


def _search(front: list[Box], fits: Fits) -> Groups:
    """Each box into each group it fits into, or one of its own, as long as that can be better."""
    best = _heuristic(front, fits)
    least = _rank(best)
    groups: Groups = []
    boxes: list[Box] = []

    def place(index: int) -> None:
        nonlocal best, least
        if (len(groups), sum(map(volume, boxes))) >= least:  # neither shrinks from here on
            return
        if index == len(front):
            best, least = [list(group) for group in groups], _rank(groups)
            return
        box = front[index]
        for slot, before in enumerate(boxes):
            grown = common((before, box))
            if fits(grown):
                groups[slot].append(box)
                boxes[slot] = grown
                place(index + 1)
                groups[slot].pop()
                boxes[slot] = before
        groups.append([box])
        boxes.append(box)
        place(index + 1)
        groups.pop()
        boxes.pop()

    place(0)
    return best


def _heuristic(front: list[Box], fits: Fits) -> Groups:
    """The best of: stretches along each axis; one after another, by volume or along an axis, into
    the group whose box grows least."""
    orders = [sorted(front, key=lambda box: (box[axis], box)) for axis in range(3)]
    found = [_stretches(order, fits) for order in orders]
    found += [_one_after_another(order, fits) for order in (front, *orders)]
    return min(found, key=_rank)


def _one_after_another(order: list[Box], fits: Fits) -> Groups:
    groups: Groups = []
    boxes: list[Box] = []
    for box in order:
        grown = [common((before, box)) for before in boxes]
        growth = [volume(one) - volume(before) for one, before in zip(grown, boxes, strict=True)]
        for slot in sorted(range(len(groups)), key=growth.__getitem__):
            if fits(grown[slot]):
                groups[slot].append(box)
                boxes[slot] = grown[slot]
                break
        else:
            groups.append([box])
            boxes.append(box)
    return groups


def _rank(groups: Groups) -> tuple[int, int]:
    return len(groups), sum(volume(common(group)) for group in groups)
