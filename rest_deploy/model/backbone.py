"""What all families have in common: four stages over feature maps, a norm, a mean, a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from rest_deploy.contracts import SMALLEST_SIDE
from rest_deploy.errors import ShapeError
from rest_deploy.model.shape_ops import to_grid, to_tokens


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


class MapLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W), likewise
        return to_grid(super().forward(to_tokens(x)), x)


class Backbone(nn.Module, ABC):
    """A family's module: `features` and what a detector's norms do are its own, the rest is the
    same for all."""

    OUTPUT_NORMS: ClassVar[tuple[str, ...]] = ()
    """Names of the norms that detectors and segmenters put behind stages 1, 2, ...; a classifier
    has none of them."""

    stage1: Stage
    stage2: Stage
    stage3: Stage
    stage4: Stage
    norm: nn.LayerNorm
    head: nn.Linear | nn.Identity

    @abstractmethod
    def features(self, image: Tensor) -> Features:
        """image: (B, 3, H, W), normalized."""

    @abstractmethod
    def behind_norms(self, features: Features) -> Features:
        """The maps and tokens as a detector takes them: normalized, where it has norms for that."""

    def add_output_norms(self, names: Iterable[str], dims: Sequence[int]) -> None:
        """Some of `OUTPUT_NORMS`, not trained yet. dims: channels of the stages."""
        for name in names:
            stage = self.OUTPUT_NORMS.index(name)
            kind = nn.LayerNorm if stage == 3 else MapLayerNorm  # stage 4's are tokens
            self.add_module(name, kind(dims[stage], eps=self.norm.eps))

    def output_norm(self, stage: int, x: Tensor) -> Tensor:
        """x: of a stage, counted from 0, behind its norm if there is one."""
        found = self._modules.get(self.OUTPUT_NORMS[stage])
        return x if found is None else found(x)

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
