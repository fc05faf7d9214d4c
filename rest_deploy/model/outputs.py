"""Image -> the tensors that were asked for, and nothing else, from any family's backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rest_deploy.contracts import Preprocessing
from rest_deploy.errors import InvariantError
from rest_deploy.model.backbone import Backbone, Features, check_image_shape
from rest_deploy.model.shape_ops import to_grid
from rest_deploy.signature import MAPS, InputKind, Output

CHILDREN = ("pixels", "probabilities", "unit_length", "c5")
"""Names of the modules here, next to the backbone's own."""


class Pixels(nn.Module):
    """uint8 RGB -> the normalized tensor, in the operations of `preprocess.normalize`, all in
    float32. Folded into the first convolution they would be wrong at its zero-padded border."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:  # (B, H, W, 3) uint8 -> (B, 3, H, W)
        values = pixels.float().permute(0, 3, 1, 2)
        return (values / 255.0 - self.get_buffer("mean")) / self.get_buffer("std")


class Probabilities(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:  # (B, classes), likewise
        return logits.softmax(dim=-1)


class UnitLength(nn.Module):
    """x / |x|. A vector of zeros has no direction and becomes NaN."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C), likewise
        return x / (x * x).sum(dim=-1, keepdim=True).sqrt()


class Grid(nn.Module):
    """Tokens of the last stage -> their map."""

    def forward(self, tokens: Tensor, grid: Tensor) -> Tensor:  # (B, N, C) -> (B, C, H, W)
        return to_grid(tokens, grid)


class Outputs(nn.Module):
    """A backbone, rewritten or not, that returns `outputs` in their order.

    Its children are the backbone's, under the same names, so that a traced graph calls its nodes
    and weights as the backbone itself would. preprocessing: for uint8 input; None: float.
    """

    _backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        outputs: Sequence[Output],
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        # Not a child: it would prefix all names.
        self.__dict__["_backbone"] = backbone
        for name, child in backbone.named_children():
            if name in CHILDREN:
                raise InvariantError(f"the backbone has a module {name!r} of its own")
            self.add_module(name, child)
        self.outputs = tuple(outputs)
        self.pixels = None if preprocessing is None else Pixels(preprocessing)
        self.probabilities = Probabilities()
        self.unit_length = UnitLength()
        self.c5 = Grid()
        self.eval()

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """image: (B, 3, H, W) normalized, or (B, H, W, 3) uint8 where the model takes pixels.

        One tensor, or a tuple of several. Raises `ShapeError` below 32x32.
        """
        if self.pixels is not None:
            image = self.pixels(image)
        check_image_shape(image)
        features = self._backbone.features(image)
        kinds = {output.kind for output in self.outputs}
        embedding = logits = None
        if kinds != {"features"}:
            embedding = self._backbone.pool(features.tokens)
        if embedding is not None and kinds & {"logits", "probabilities"}:
            logits = self._backbone.head(embedding)
        if "features" in kinds:
            features = self._backbone.behind_norms(features)
        found = tuple(self._one(o, features, embedding, logits) for o in self.outputs)
        return found if len(found) > 1 else found[0]

    def _one(
        self, output: Output, features: Features, embedding: Tensor | None, logits: Tensor | None
    ) -> Tensor:
        if output.kind == "features":
            if output.name == MAPS[3]:
                return self.c5(features.tokens, features.grid)
            return features[MAPS.index(output.name)]
        if output.kind == "embedding" and embedding is not None:
            return self.unit_length(embedding) if output.unit_length else embedding
        if logits is None:
            raise InvariantError(f"no tensor for the output {output}")
        return self.probabilities(logits) if output.kind == "probabilities" else logits


def takes(kind: InputKind, preprocessing: Preprocessing) -> Preprocessing | None:
    """What `Outputs` normalizes by: of uint8 input."""
    return preprocessing if kind == "uint8" else None
