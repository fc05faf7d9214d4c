"""Whether the fewest groups are the fewest: against every partition there is."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from rest_deploy.engine import partition
from rest_deploy.engine.partition import Box, Fits, Groups, common, fewest, inside, maximal, volume


def partitions(boxes: list[Box]) -> Iterator[Groups]:
    """All of them, straight from the definition."""
    if not boxes:
        yield []
        return
    for smaller in partitions(boxes[1:]):
        yield [[boxes[0]], *smaller]
        for index in range(len(smaller)):
            yield [*smaller[:index], [boxes[0], *smaller[index]], *smaller[index + 1 :]]


def exhaustive(boxes: list[Box], fits: Fits) -> tuple[int, int]:
    """Fewest groups, least volume of those; of all boxes, not of the maximal ones."""
    return min(
        (len(groups), sum(volume(common(group)) for group in groups))
        for groups in partitions(boxes)
        if all(len(group) == 1 or fits(common(group)) for group in groups)
    )


def by_area(boxes: list[Box], fits: Fits) -> int:
    """Groups of the greedy one that used to be here: by area, each to the last group or a new."""
    groups: Groups = []
    for box in sorted(boxes, key=lambda box: (volume(box), box)):
        if groups and fits(common([*groups[-1], box])):
            groups[-1].append(box)
        else:
            groups.append([box])
    return len(groups)


def within(limit: float) -> Fits:
    return lambda box: volume(box) <= limit


def draw(rng: random.Random, count: int, batches: int) -> tuple[list[Box], float]:
    """Boxes, and a limit between what the largest takes alone and what all take together."""
    boxes = [(rng.randint(1, batches), rng.randint(1, 9), rng.randint(1, 9)) for _ in range(count)]
    alone, together = max(map(volume, boxes)), volume(common(boxes))
    return list(dict.fromkeys(boxes)), alone + rng.random() ** 2 * (together - alone)


@pytest.mark.parametrize("batches", [1, 8])
def test_fewest_of_all_partitions(batches: int) -> None:
    """Sizes with one batch, and boxes of any kind; every box in exactly one group."""
    rng = random.Random(batches)
    worse = 0
    for _ in range(400):
        boxes, limit = draw(rng, rng.randint(1, 7), batches)
        groups = fewest(boxes, within(limit))
        found = (len(groups), sum(volume(common(group)) for group in groups))
        assert found == exhaustive(boxes, within(limit)), (boxes, limit)
        assert sorted(box for group in groups for box in group) == sorted(maximal(boxes))
        assert all(volume(common(group)) <= limit for group in groups)
        worse += by_area(boxes, within(limit)) > found[0]
    assert worse > 10, "the instances tell a greedy one from the best"


def test_greedy_by_area_is_not_the_fewest() -> None:
    boxes = [(1, 10, 40), (1, 40, 11), (1, 12, 39), (1, 38, 13)]
    assert by_area(boxes, within(520)) == 4
    assert fewest(boxes, within(520)) == [[(1, 10, 40), (1, 12, 39)], [(1, 38, 13), (1, 40, 11)]]


def test_any_number_of_sizes_with_one_batch() -> None:
    """Stretches are exact: fewer than the heuristics' here and there, more never."""
    rng = random.Random(5)
    better = 0
    for _ in range(60):
        heights = sorted(rng.sample(range(1, 400), 40))
        widths = sorted(rng.sample(range(1, 400), 40), reverse=True)
        boxes = [(4, height, width) for height, width in zip(heights, widths, strict=True)]
        fits = within(max(map(volume, boxes)) * (1 + rng.random()))
        groups = fewest(boxes, fits)
        assert all(fits(common(group)) for group in groups)
        greedy = [
            len(partition._one_after_another(order, fits)) for order in (maximal(boxes), boxes)
        ]
        assert len(groups) <= min(greedy)
        better += len(groups) < greedy[0]
    assert better > 10


def test_the_search_finds_what_the_heuristics_miss() -> None:
    boxes = [(8, 4, 6), (4, 5, 8), (5, 5, 6), (3, 7, 5), (3, 9, 3), (6, 9, 1)]
    assert len(partition._heuristic(boxes, within(244))) == 4
    assert len(fewest(boxes, within(244))) == 3


def test_many_boxes_of_any_kind() -> None:
    """More than are searched: whole and within the limit; where it can be compared, near."""
    rng = random.Random(7)
    more: list[int] = []
    while len(more) < 600:
        boxes = [(rng.randint(1, 60), rng.randint(1, 60), rng.randint(1, 60)) for _ in range(20)]
        front = maximal(boxes)
        if 7 <= len(front) <= partition.EXACT:
            fits = within(max(map(volume, front)) * (1 + rng.random()))
            exact, found = partition._search(front, fits), partition._heuristic(front, fits)
            more.append(len(found) - len(exact))
    assert (sum(more), max(more)) == (2, 1), "as docs/tensorrt.md says"
    pairs = [(rng.randint(1, 64), rng.randint(1, 64)) for _ in range(60)]
    many = maximal((one, other, 10_000 // (one * other)) for one, other in pairs)
    assert len(many) > partition.EXACT
    fits = within(3 * max(map(volume, many)) / 2)
    groups = fewest(many, fits)
    assert sorted(box for group in groups for box in group) == sorted(many)
    assert all(fits(common(group)) for group in groups)
    assert len(groups) <= len(many) / 2


def test_maximal() -> None:
    boxes = [(1, 2, 3), (1, 2, 3), (1, 3, 3), (2, 1, 1), (1, 2, 2)]
    assert maximal(boxes) == [(1, 3, 3), (2, 1, 1)]
    assert inside((1, 2, 3), (1, 3, 3))
    assert not inside((2, 1, 1), (1, 3, 3))
