"""Where batch, height and width stand in a graph's input: the one place that knows both layouts.

Everywhere else, profiles and plans included, a shape is (batch, 3, height, width), whatever the
graph takes; it is turned into the input's own shape where a tensor of it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rest_deploy.contracts import SMALLEST_SIDE, Dims
from rest_deploy.errors import ShapeError
from rest_deploy.signature import InputKind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Layout:
    """Of one input kind. `axes`: the place of batch, channels, height and width in its shape."""

    kind: InputKind
    dtype: str
    axes: tuple[int, int, int, int]
    words: str

    def shape(self, dims: Dims) -> Dims:
        """(batch, 3, height, width) -> the input's shape."""
        placed = dict(zip(self.axes, dims, strict=True))
        return (placed[0], placed[1], placed[2], placed[3])

    def dims(self, shape: tuple[int, ...]) -> Dims:
        """The input's shape -> (batch, 3, height, width). Raises `ShapeError` for other ranks."""
        if len(shape) != 4:
            raise ShapeError(f"got images of shape {shape}; expected {self.words}")
        batch, channels, height, width = (int(shape[axis]) for axis in self.axes)
        return (batch, channels, height, width)

    def noise(self, dims: Dims, dtype: str = "") -> npt.NDArray[np.generic]:
        """Such an input, the same every time: pixels, or normally distributed. Fit for timing and
        for whether something runs; dtype: of a graph that takes float16."""
        import numpy as np

        generator = np.random.default_rng(0)
        if self.dtype == "uint8":
            return generator.integers(0, 256, self.shape(dims), np.uint8)
        return generator.standard_normal(self.shape(dims)).astype(dtype or self.dtype)

    def names(self) -> tuple[str, str, str, str]:
        """Of the axes, in the input's order."""
        named = dict(zip(self.axes, ("batch", "channels", "height", "width"), strict=True))
        return (named[0], named[1], named[2], named[3])

    def check(self, images: npt.NDArray[np.generic]) -> None:
        """Raise `ShapeError` unless `images` is such an input, N > 0, H and W >= 32."""
        shape = tuple(getattr(images, "shape", ()))
        dtype = getattr(images, "dtype", type(images).__name__)
        fits = len(shape) == 4 and min(shape) > 0
        if fits:
            _, channels, height, width = self.dims(shape)
            fits = channels == 3 and min(height, width) >= SMALLEST_SIDE
        if not fits or str(dtype) != self.dtype:
            raise ShapeError(
                f"got {dtype} of shape {shape}; expected {self.words} with height and width of at "
                f"least {SMALLEST_SIDE}",
                hint=_other(self, str(dtype)),
            )


FLOAT = Layout("float", "float32", (0, 1, 2, 3), "float32 (batch, 3, height, width), normalized,")
UINT8 = Layout("uint8", "uint8", (0, 3, 1, 2), "uint8 (batch, height, width, 3), RGB,")


def layout_of(kind: InputKind) -> Layout:
    """Of `ModelMetadata.input_kind`."""
    return UINT8 if kind == "uint8" else FLOAT


def layout_of_type(dtype: str) -> Layout:
    """Of a graph's input by its element type, "uint8", "float32" or "float16"."""
    return UINT8 if dtype == "uint8" else FLOAT


def _other(wanted: Layout, dtype: str) -> str | None:
    """What to do with an input of the other kind."""
    if wanted is UINT8 and dtype == "float32":
        return "this model normalizes by itself: give it the pixels, preprocess.to_pixels"
    if wanted is FLOAT and dtype == "uint8":
        return "preprocess.normalize makes such a tensor; export --input uint8 takes pixels"
    return None
