"""What all families' rewrites share: stages that name no size, attentions with q, k, v apart."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from rest_deploy.model.backbone import Backbone, Stage
from rest_deploy.model.deploy.weights import drop_bias, half, linear, scale_linear
from rest_deploy.model.rest import EfficientAttention
from rest_deploy.model.rest_v2 import UpsampledAttention
from rest_deploy.model.shape_ops import reshape, to_grid, to_tokens

STAGES = ("stage1", "stage2", "stage3", "stage4")

Rewrite = Callable[[Backbone], int]
"""Changes the module in place; returns how often it fired."""


class DeployStage(Stage):
    """A stage whose shape changes are dynamic in the exported graph."""

    def tokens(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:  # see Stage
        tokens = to_tokens(x)
        tokens = norm(tokens) if norm is not None else tokens
        for block in self:
            tokens = block(tokens, x)
        return tokens

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        return to_grid(self.tokens(x, norm), x)


class Scores(nn.Module):
    """q k^T; the scale is in q's weights."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:  # (B, h, N, d), (B, h, d, M) -> (B, h, N, M)
        return q @ k


class Context(nn.Module):
    """The attention map (or its centred form) times v."""

    def forward(self, p: Tensor, v: Tensor) -> Tensor:  # (B, h, N, M), (B, h, M, d) -> (B, h, N, d)
        return p @ v


class ReducedAttention(nn.Module):
    """Where keys and values come from."""

    def __init__(self, sr: nn.Conv2d | None, sr_norm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.sr, self.sr_norm = sr, sr_norm
        self.scores, self.context = Scores(), Context()

    def reduce(self, x: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, N, C), grid: (B, C, H, W) -> (B, M, C) tokens and a map of their layout."""
        if self.sr is None or self.sr_norm is None:
            return x, grid
        reduced = self.sr(to_grid(x, grid))  # (B, C, H', W')
        return self.sr_norm(to_tokens(reduced)), reduced


class SplitAttention(ReducedAttention):
    """q, k and v apart, as the recipes and most rewrites want them."""

    def __init__(self, source: EfficientAttention | UpsampledAttention) -> None:
        super().__init__(source.sr, source.sr_norm)
        dim = source.q.in_features
        self.heads = source.heads
        self.scale = source.scale
        self.q, self.proj = source.q, source.proj
        self.k, self.v = (half(source.kv, part, dim) for part in (0, 1))

    def by_head(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C), (B, M, C) twice -> (B, h, N, d), (B, h, d, M), (B, h, M, d)."""
        h, d = self.heads, q.shape[2] // self.heads
        if h == 1:  # nothing to transpose
            return q.unsqueeze(1), k.unsqueeze(1).transpose(2, 3), v.unsqueeze(1)
        return (
            reshape(q, [0, 0, h, d]).transpose(1, 2),
            reshape(k, [0, 0, h, d]).permute(0, 2, 3, 1),
            reshape(v, [0, 0, h, d]).transpose(1, 2),
        )

    def scaled(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, h, N, d), (B, h, d, M) -> scores (B, h, N, M)."""
        scores = self.scores(q, k)
        return scores if self.scale == 1.0 else scores * self.scale

    def joined(self, context: Tensor) -> Tensor:
        """(B, h, N, d) -> (B, N, C)."""
        if self.heads == 1:
            return context.squeeze(1)
        return reshape(context.transpose(1, 2), [0, 0, self.heads * context.shape[3]])


class OneHead(ReducedAttention):
    """One head with q's weights moved to the few keys: for x the N tokens and y the M reduced ones,
    scores = (x Wq + bq)(y Wk)^T = x (y Wk Wq^T)^T + (y Wk bq)^T, a GEMM of N x C x C less.

    With h heads the products would be h times wider, which costs more than it saves from M = C on.
    """

    def __init__(self, source: SplitAttention) -> None:
        super().__init__(source.sr, source.sr_norm)
        q, k = source.q, source.k
        self.k = linear(q.weight.T @ k.weight)
        self.k_offset = linear(q.bias[None] @ k.weight) if q.bias is not None else None

    def map(self, x: Tensor, source: Tensor) -> Tensor:
        """x: (B, N, C), source: (B, M, C) -> softmax of the scores (B, 1, N, M)."""
        k = self.k(source).unsqueeze(1).transpose(2, 3)  # (B, 1, C, M)
        scores = self.scores(x.unsqueeze(1), k)  # (B, 1, N, M)
        if self.k_offset is not None:
            scores = scores + self.k_offset(source).unsqueeze(1).transpose(2, 3)  # (B, 1, 1, M)
        return scores.softmax(dim=-1)


def blocks(model: Backbone) -> list[nn.Module]:
    return [block for stage in STAGES for block in getattr(model, stage)]


def attentions(model: Backbone) -> list[SplitAttention]:
    return [module for module in model.modules() if isinstance(module, SplitAttention)]


def name_no_sizes(model: Backbone) -> int:
    """Stages with shape operators that do not name a size: see `shape_ops`."""
    for name in STAGES:
        setattr(model, name, DeployStage(getattr(model, name)))
    return len(STAGES)


def fold_scale(model: Backbone) -> int:
    """(q k^T) * scale -> (scale q) k^T, the scale in q's weight and bias."""
    for attention in attentions(model):
        scale_linear(attention.q, attention.scale)
        attention.scale = 1.0
    return len(attentions(model))


def drop_key_bias(model: Backbone) -> int:
    """k's bias adds the same q_n . b to a whole row of scores, also after the mix: no effect."""
    return sum(drop_bias(attention.k) is not None for attention in attentions(model))
