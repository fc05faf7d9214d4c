"""What a served model takes and gives, as its clients see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rest_deploy.contracts import SMALLEST_SIDE, Dims
from rest_deploy.errors import InputError
from rest_deploy.layout import layout_of
from rest_deploy.signature import SCORES, InputKind, Output

DATATYPE = "FP32"
"""Of what is answered, whatever the engine computes in."""


class ProtocolError(InputError):
    """A request that is not of the protocol, or not for this model."""


@dataclass(frozen=True)
class Accepts:
    """outputs: in the engine's order. labels: one a class, none without a head. max_side: pixels;
    larger images are refused."""

    name: str
    version: str
    input_name: str
    outputs: tuple[Output, ...]
    labels: tuple[str, ...]
    max_side: int
    input_kind: InputKind = "float"

    @property
    def datatype(self) -> str:
        """Of the images."""
        return "UINT8" if self.input_kind == "uint8" else DATATYPE

    @property
    def gives(self) -> str:
        """The outputs' names, for messages."""
        return ", ".join(output.name for output in self.outputs)

    @property
    def scores(self) -> Output | None:
        """What classes are read from: logits, else probabilities."""
        for kind in SCORES:
            for output in self.outputs:
                if output.kind == kind:
                    return output
        return None

    @property
    def embedding(self) -> Output | None:
        return next((output for output in self.outputs if output.kind == "embedding"), None)

    def find(self, name: str) -> Output | None:
        return next((output for output in self.outputs if output.name == name), None)

    def input_shape(self) -> list[int]:
        """-1 for an axis of any length."""
        return list(layout_of(self.input_kind).shape((-1, 3, -1, -1)))

    def output_shape(self, output: Output) -> list[int]:
        return [-1, output.channels, *((-1, -1) if output.stride else ())]


def shape_of(output: Output, images: Dims) -> tuple[int, ...]:
    """Of the output for images (batch, 3, height, width)."""
    batch, _, *sides = images
    cells = (-(-side // output.stride) for side in sides) if output.stride else ()
    return (batch, output.channels, *cells)


def check_shape(shape: Sequence[int], accepts: Accepts) -> None:
    """Raise `ProtocolError` unless images of that shape, in the input's layout, may be computed."""
    fits = len(shape) == 4
    if fits:
        batch, channels, height, width = layout_of(accepts.input_kind).dims(tuple(shape))
        sides = (height, width)
        fits = batch >= 1 and channels == 3
        fits = fits and all(SMALLEST_SIDE <= side <= accepts.max_side for side in sides)
    if not fits:
        axes = ("batch", "3", "height", "width")
        placed = dict(zip(layout_of(accepts.input_kind).axes, axes, strict=True))
        raise ProtocolError(
            f"got the shape {list(shape[:6])}; expected "
            f"[{', '.join(placed[axis] for axis in range(4))}] with height and width of "
            f"{SMALLEST_SIDE} to {accepts.max_side}"
        )
