from __future__ import annotations

import random

import pytest

from rest_deploy.contracts import Dims, Profile
from rest_deploy.engine.planner import (
    Expected,
    Limit,
    Plan,
    describe_left_out,
    plan,
    plan_profiles,
    serving,
)
from rest_deploy.errors import InputError, InvariantError


def scratch(shape: Dims) -> int:
    """100 bytes a pixel."""
    return 100 * shape[0] * shape[2] * shape[3]


def maxima(*arguments: object) -> list[Dims]:
    return [profile.maximum for profile in plan_profiles(*arguments)]  # type: ignore[arg-type]  # as given


def test_sizes_inside_one_another_share_a_profile() -> None:
    (profile,) = plan_profiles([(224, 224), (512, 512), (384, 384)], (1, 16), scratch, None)
    assert profile.minimum == (1, 3, 224, 224)
    assert profile.optimum == (4, 3, 384, 384)
    assert profile.maximum == (16, 3, 512, 512)


def test_what_no_image_has_costs_no_memory() -> None:
    """512x224 and 224x512 together would need 512x512."""
    sizes = [(224, 512), (512, 224)]
    assert maxima(sizes, (1, 8), scratch, None) == [(8, 3, 224, 512), (8, 3, 512, 224)]
    assert maxima(sizes, (1, 8), scratch, 10**9) == [(8, 3, 512, 512)]


def test_fewest_within_the_memory() -> None:
    sizes = [(224, 224), (256, 256), (224, 512), (512, 224)]
    limit = scratch((8, 3, 256, 512))
    found = maxima(sizes, (1, 8), scratch, limit)
    assert found == [(8, 3, 256, 512), (8, 3, 512, 224)]
    assert all(scratch(shape) <= limit for shape in found)


def test_too_little_memory_names_the_batch_that_fits() -> None:
    with pytest.raises(InputError, match=r"16 images of 512x512 need about 0\.42 GB") as caught:
        plan_profiles([(224, 224), (512, 512)], (1, 16), scratch, 200_000_000)
    assert caught.value.hint == "--expect-batches up to 7, or more --memory"
    with pytest.raises(InputError) as caught:
        plan_profiles([(512, 512)], (4, 16), scratch, 1000)
    assert "not even one image" in (caught.value.hint or "")


def test_fewest_where_areas_alternate() -> None:
    """By area, tall and wide ones take turns: no two neighbours share a profile."""
    sizes = [(100, 400), (400, 110), (120, 390), (380, 130)]
    limit = scratch((1, 3, 400, 130))
    assert maxima(sizes, (1, 1), scratch, limit) == [(1, 3, 120, 400), (1, 3, 400, 130)]


def request(height: int, width: int, batch: int, count: int = 1) -> Expected:
    return Expected(height, width, 1, batch, batch, count)


def test_bounds_are_what_occurs() -> None:
    """From one image, for the last batch; large images come alone and cost no batch of 32."""
    expected = [request(224, 224, 32, 90), request(224, 256, 8, 5), request(1024, 1024, 1, 5)]
    small, large = plan(expected, scratch, scratch((32, 3, 224, 256))).profiles[::-1]
    assert (small.minimum, small.maximum) == ((1, 3, 224, 224), (32, 3, 224, 256))
    assert small.optimum == (32, 3, 224, 224)
    assert (large.minimum, large.maximum) == ((1, 3, 1024, 1024), (1, 3, 1024, 1024))


def test_optimum_is_nearest_to_the_requests() -> None:
    def optimum(*expected: Expected) -> Dims:
        (profile,) = plan(expected, scratch, 10**12).profiles
        return profile.optimum

    sides = [(224, 30), (256, 10), (288, 10), (320, 12)]
    assert optimum(*(request(side, side, 1, n) for side, n in sides))[2:] == (256, 256)
    often = [*sides[1:], (224, 40)]
    assert optimum(*(request(side, side, 1, n) for side, n in often))[2:] == (224, 224), "over half"
    alone = [(32, 30), (480, 25), (512, 26), (544, 25)]
    assert optimum(*(request(side, side, 1, n) for side, n in alone))[2:] == (480, 480), (
        "32 is the most frequent and a fifteenth of the others"
    )
    assert optimum(request(224, 224, 8, 5), request(224, 224, 4, 5)) == (8, 3, 224, 224), "a tie"


def test_who_serves_the_requests() -> None:
    expected = [request(224, 512, 4, 70), request(512, 224, 4, 20), request(100, 100, 1, 10)]
    made = plan(expected, scratch, None)
    found = serving(made, expected)
    assert (found.requests, found.shapes, found.left_out) == (100, 3, ())
    assert found.served == (80, 20), "100x100 is as near to both: the first"
    assert found.shares == (0.8, 0.2)
    smaller = Profile(minimum=(1, 3, 224, 512), optimum=(1, 3, 224, 512), maximum=(4, 3, 224, 512))
    with pytest.raises(InvariantError, match="no planned profile holds"):
        serving(Plan((smaller,), ()), expected)


OUTLIERS = [
    request(224, 224, 8, 900),
    request(384, 384, 8, 95),
    request(2048, 2048, 1, 4),
    request(32, 2000, 1, 1),
]


def test_nothing_is_left_out_unless_it_may_be() -> None:
    made = plan(OUTLIERS, scratch, None)
    assert made.left_out == ()
    assert all(any(p.holds(one.shape(one.most)) for p in made.profiles) for one in OUTLIERS)


def test_the_expensive_and_rare_are_left_out() -> None:
    """The narrow one costs no memory and no profile: of five to spare four go."""
    made = plan(OUTLIERS, scratch, None, spare=5)
    assert made.left_out == (request(2048, 2048, 1, 4), request(32, 2000, 1, 1))
    assert [profile.maximum for profile in made.profiles] == [(8, 3, 384, 384)]
    made = plan(OUTLIERS, scratch, 10**10, spare=5)
    assert made.left_out == (), "one profile for all is within the memory: nothing to gain"
    assert [profile.maximum for profile in made.profiles] == [(8, 3, 2048, 2048)]
    found = serving(plan(OUTLIERS, scratch, None, spare=5), OUTLIERS)
    assert found.served == (995,)
    assert sum(found.served) + sum(one.requests for one in found.left_out) == found.requests
    assert describe_left_out(found) == (
        "left out, 0.50% of the requests: 1x3x2048x2048 (0.40%), 1x3x32x2000 (0.10%)"
    )


def test_what_a_profile_holds_anyway_is_not_left_out() -> None:
    """Everything that is left out would need another profile or more memory."""
    rng = random.Random(3)
    left_out = 0
    for _ in range(60):
        shapes = {
            (rng.randint(32, 320), rng.randint(32, 320), rng.randint(1, 8)): rng.randint(1, 40)
            for _ in range(12)
        }
        expected = [request(*shape, count) for shape, count in shapes.items()]
        total = sum(shapes.values())
        spare = total // 20
        needs = max(scratch(one.shape(one.most)) for one in expected)
        for memory in (None, 2 * needs):
            made = plan(expected, scratch, memory, spare)
            assert sum(one.count for one in made.left_out) <= spare
            serving(made, expected)  # raises where one is not held
            kept = [one for one in expected if one not in made.left_out]
            for one in made.left_out:
                assert not any(p.holds(one.shape(one.most)) for p in made.profiles)
                worse = plan([*kept, one], scratch, memory)
                most = max(scratch(p.maximum) for p in made.profiles)
                assert len(worse.profiles) > len(made.profiles) or (
                    memory is None and max(scratch(p.maximum) for p in worse.profiles) > most
                )
            left_out += len(made.left_out)
    assert left_out > 20


def test_many_left_out_are_counted() -> None:
    expected = [request(224, 224, 1, 10_000), *(request(224, 1000 + n, 1) for n in range(12))]
    made = plan(expected, scratch, scratch((1, 3, 224, 224)), spare=12)
    said = describe_left_out(serving(made, expected))
    assert said.startswith("left out, 0.12% of the requests: ")
    assert said.endswith(" and 4 more")


def test_too_little_memory_for_a_histogram() -> None:
    limit = scratch((8, 3, 384, 384))
    assert plan(OUTLIERS, scratch, limit, spare=4).left_out == (request(2048, 2048, 1, 4),)
    with pytest.raises(InputError, match=r"1 images of 2048x2048 need about 0\.42 GB") as caught:
        plan(OUTLIERS, scratch, limit, spare=3)
    assert caught.value.hint == (
        "--memory 0.4, or --expect-coverage 99.6: 4 of 1000 requests need too much alone"
    )
    with pytest.raises(InputError) as caught:
        plan(OUTLIERS, scratch, 1000)
    assert caught.value.hint == "--memory 0.4"


def test_a_limit_asks_no_more_than_it_must() -> None:
    asked: list[Dims] = []

    def counted(shape: Dims) -> int:
        asked.append(shape)
        return scratch(shape)

    fits = Limit(counted, 100 * 64 * 64)
    assert [fits((1, 64, 64)), fits((1, 32, 64)), fits((2, 64, 64)), fits((2, 65, 64))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert asked == [(1, 3, 64, 64), (2, 3, 64, 64)]


def test_the_same_shape_twice() -> None:
    with pytest.raises(InvariantError, match="add their counts up"):
        plan([request(224, 224, 1), request(224, 224, 1, 2)], scratch, None)
