"""What all families have in common: four stages over feature maps, a norm, a mean, a head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from rest_deploy.contracts import SMALLEST_SIDE
from rest_deploy.errors import ShapeError


class Stage(nn.ModuleList):
    """The blocks of one stage over the tokens of a feature map.

    Height and width are those of the map itself. The official code recomputes them by floor
    division, which disagrees with its convolutions (they round up) unless ceil(H/4) and
    ceil(W/4) are multiples of 8.
    """

    def tokens(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """x: (B, C, H, W) -> (B, H*W, C). norm: of the tokens, before the first block."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = norm(tokens) if norm is not None else tokens
        for block in self:
            tokens = block(tokens, x)
        return tokens

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """The same as a map: (B, C, H, W) -> (B, C, H, W)."""
        return self.tokens(x, norm).transpose(1, 2).reshape(x.shape)


class Features(NamedTuple):
    """What the stages return, before the last norm.

    c2, c3, c4: (B, C, H/4, W/4) to (B, C, H/16, W/16), rounded up; tokens: stage 4's, (B, N4, C4);
    grid: (B, C4, H/32, W/32), a map of their layout.
    """

    c2: Tensor
    c3: Tensor
    c4: Tensor
    tokens: Tensor
    grid: Tensor


class Backbone(nn.Module):
    """A family's module: `features` is its own, the rest is the same for all."""

    stage1: Stage
    stage2: Stage
    stage3: Stage
    stage4: Stage
    norm: nn.LayerNorm
    head: nn.Linear | nn.Identity

    def features(self, image: Tensor) -> Features:
        """image: (B, 3, H, W), normalized."""
        raise NotImplementedError

    def pool(self, tokens: Tensor) -> Tensor:  # (B, N4, C4) -> (B, C4), the embedding
        return self.norm(tokens).mean(dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W), normalized -> logits (B, num_classes).

        Without a head: the embedding (B, C4). Raises `ShapeError` below 32x32.
        """
        check_image_shape(image)
        return self.head(self.pool(self.features(image).tokens))


def check_image_shape(image: Tensor) -> None:
    """Raise `ShapeError` unless `image` is (B, 3, H, W) with H and W of at least 32."""
    if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < SMALLEST_SIDE:
        raise ShapeError(
            f"got an image tensor of shape {tuple(image.shape)}, expected (batch, 3, height, "
            f"width) with height and width of at least {SMALLEST_SIDE}"
        )
