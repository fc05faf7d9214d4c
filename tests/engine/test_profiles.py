from __future__ import annotations

import pytest

from rest_deploy.cards import load_card
from rest_deploy.contracts import Profile
from rest_deploy.engine.profiles import (
    default_profiles,
    describe,
    parse_shape,
    profile_for,
    profiles_from,
)
from rest_deploy.errors import InputError

CARD = load_card("nano").preprocessing


def test_shapes_in_trtexecs_words() -> None:
    assert parse_shape("8x3x224x320") == (8, 3, 224, 320)
    assert parse_shape("image:1x3x64x64") == (1, 3, 64, 64)


@pytest.mark.parametrize("text", ["", "8x224x224", "8x4x224x224", "8x3x224", "ax3x2x2", "8x3x-1x9"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(InputError, match="expected BATCHx3xHEIGHTxWIDTH"):
        parse_shape(text)


def test_the_default_is_the_cards_size() -> None:
    (profile,) = default_profiles(CARD)
    assert profile.optimum == (8, 3, 224, 224)
    assert profile.holds((1, 3, 32, 32))
    assert profile.holds((32, 3, 224, 224))
    assert not profile.holds((33, 3, 224, 224))
    assert describe(profile) == "1x3x32x32 to 32x3x224x224, tuned for 8x3x224x224"


def test_one_of_each_a_profile() -> None:
    found = profiles_from(
        ["1x3x64x64", "1x3x300x300"], ["1x3x224x224", "2x3x384x384"],
        ["8x3x256x256", "4x3x512x512"], CARD,
    )  # fmt: skip
    assert [profile.maximum for profile in found] == [(8, 3, 256, 256), (4, 3, 512, 512)]


def test_the_largest_alone() -> None:
    (profile,) = profiles_from([], [], ["4x3x96x128"], CARD)
    assert (profile.minimum, profile.optimum) == ((1, 3, 32, 32), (4, 3, 96, 128))


@pytest.mark.parametrize(
    ("least", "best", "most", "words"),
    [
        (["1x3x64x64"], [], [], "without --max-shapes"),
        (["1x3x64x64"] * 2, [], ["8x3x64x64"], "2 --min-shapes and 1 --max-shapes"),
        ([], ["1x3x64x64"] * 3, ["8x3x64x64"], "3 --opt-shapes and 1 --max-shapes"),
        (["9x3x64x64"], [], ["8x3x64x64"], "min <= opt <= max"),
        ([], ["4x3x96x64"], ["8x3x64x64"], "min <= opt <= max"),
        (["1x3x16x64"], [], ["8x3x64x64"], "at least 32"),
        (["0x3x64x64"], [], ["8x3x64x64"], "min <= opt <= max"),
    ],
)
def test_what_cannot_be(least: list[str], best: list[str], most: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        profiles_from(least, best, most, CARD)


def profile(batch: int, side: int) -> Profile:
    return Profile(
        minimum=(1, 3, 32, 32), optimum=(batch, 3, side, side), maximum=(batch * 2, 3, side, side)
    )


def test_the_profile_tuned_closest_is_taken() -> None:
    tiers = [profile(8, 512), profile(8, 224), profile(1, 224)]
    assert profile_for(tiers, (8, 3, 224, 224)) == 1
    assert profile_for(tiers, (1, 3, 200, 200)) == 2
    assert profile_for(tiers, (2, 3, 500, 500)) == 0


def test_outside_every_profile_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"takes no 1x3x600x512; nearest.*16x3x512x512") as caught:
        profile_for([profile(8, 512), profile(8, 224)], (1, 3, 600, 512))
    assert "--max-shapes 16x3x600x512" in (caught.value.hint or "")
