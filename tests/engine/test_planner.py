from __future__ import annotations

import pytest

from rest_deploy.contracts import Dims
from rest_deploy.engine.planner import plan_profiles
from rest_deploy.errors import InputError


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
