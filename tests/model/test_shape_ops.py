"""The operators that name no size, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from rest_deploy.model.shape_ops import depth_to_space


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 8), (5, 7)])
def test_depth_to_space_is_a_pixel_shuffle_cut_to_the_map(height: int, width: int) -> None:
    x, like = torch.randn(2, 12, 3, 4), torch.empty(2, 5, height, width)
    expected = torch.nn.functional.pixel_shuffle(x, 2)[:, :, :height, :width]
    assert torch.equal(depth_to_space(x, like, 2), expected)


def test_its_shape_is_known_without_its_values() -> None:
    torch.library.opcheck(
        depth_to_space, (torch.randn(2, 12, 3, 4), torch.empty(2, 5, 5, 7), 2),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
