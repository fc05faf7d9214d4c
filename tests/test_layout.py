"""Both layouts of the input: there and back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from rest_deploy.errors import ShapeError
from rest_deploy.layout import FLOAT, UINT8, Layout, layout_of, layout_of_type


def test_shapes_there_and_back() -> None:
    dims = (5, 3, 64, 96)
    assert FLOAT.shape(dims) == dims
    assert UINT8.shape(dims) == (5, 64, 96, 3)
    for layout in (FLOAT, UINT8):
        assert layout.dims(layout.shape(dims)) == dims
    assert UINT8.names() == ("batch", "height", "width", "channels")
    with pytest.raises(ShapeError, match=r"expected uint8 \(batch, height, width, 3\)"):
        UINT8.dims((64, 96, 3))


def test_the_kind_of_a_type() -> None:
    assert layout_of("uint8") is layout_of_type("uint8") is UINT8
    assert layout_of("float") is layout_of_type("float32") is layout_of_type("float16") is FLOAT


@pytest.mark.parametrize("layout", [FLOAT, UINT8])
def test_what_fits(layout: Layout) -> None:
    layout.check(np.zeros(layout.shape((2, 3, 32, 40)), layout.dtype))


@pytest.mark.parametrize("dims", [(0, 3, 64, 64), (1, 4, 64, 64), (1, 3, 31, 64), (1, 3, 64, 31)])
@pytest.mark.parametrize("layout", [FLOAT, UINT8])
def test_what_does_not(layout: Layout, dims: tuple[int, int, int, int]) -> None:
    with pytest.raises(ShapeError, match="height and width of at least 32"):
        layout.check(np.zeros(layout.shape(dims), layout.dtype))


def test_the_other_kind_is_told_apart() -> None:
    """Both descriptions, and what to do."""
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ShapeError, match=r"got uint8 .* expected float32 .*preprocess.normalize"):
        FLOAT.check(pixels)
    with pytest.raises(ShapeError, match=r"got float32 .* expected uint8 .*preprocess.to_pixels"):
        UINT8.check(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(ShapeError, match="got int64"):
        UINT8.check(pixels.astype(np.int64))
    with pytest.raises(ShapeError, match="got list of shape"):
        UINT8.check([[1]])  # type: ignore[arg-type]  # not an array
