"""Exact rewrites of ResT v2.

Its attention has no head mix and no InstanceNorm, so nothing of v1's list about those is here. v's
bias stays where it is: moved behind the attention (as v1's is) it would be W b in proj's bias, but
the branch reads v too, and its convolution pads with zeros: conv(v + b) is conv(v) plus a constant
only where no tap meets the border. Nothing would be saved by moving half of it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from rest_deploy.contracts import InstanceNormForm
from rest_deploy.errors import InvariantError
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.deploy.split import (
    OneHead,
    Rewrite,
    SplitAttention,
    blocks,
    drop_key_bias,
    fold_scale,
    name_no_sizes,
)
from rest_deploy.model.deploy.weights import fold_norm
from rest_deploy.model.rest_v2 import Stem, UpsampledAttention
from rest_deploy.model.shape_ops import depth_to_space, to_grid, to_tokens


class FoldedStem(nn.Module):
    """The stem's three convolutions without BatchNorm, under the names that v1's have."""

    def __init__(self, source: Stem) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            layer for layer in source.proj if isinstance(layer, nn.Conv2d)
        )
        self.pos, self.norm = source.pos, source.norm

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, C, H/4, W/4), rounded up
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.pos(self.conv3(x))


def branch(up: nn.Conv2d, norm: nn.LayerNorm, v: Tensor, reduced: Tensor, grid: Tensor) -> Tensor:
    """v: (B, M, C); reduced: (B, C, H', W'), a map of its layout; grid: (B, C, H, W). -> (B, N, C).

    See `UpsampledAttention.branch`.
    """
    fine = up(to_grid(v, reduced))  # (B, s*s*C, H', W')
    ratio = round((up.out_channels / up.in_channels) ** 0.5)
    if ratio > 1:
        fine = depth_to_space(fine, grid, ratio)  # (B, C, H, W)
    return norm(to_tokens(fine))


class DeployAttention(SplitAttention):
    """EMSA v2 with q, k and v apart, for export. Same interface as the reference's."""

    def __init__(self, source: UpsampledAttention) -> None:
        super().__init__(source)
        self.up, self.up_norm = _convolution(source), source.up_norm

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        source, reduced = self.reduce(x, grid)
        values = self.v(source)  # (B, M, C)
        q, k, v = self.by_head(self.q(x), self.k(source), values)
        context = self.joined(self.context(self.scaled(q, k).softmax(dim=-1), v))
        return self.proj(context + branch(self.up, self.up_norm, values, reduced, grid))


class OneHeadAttention(OneHead):
    """EMSA v2 of one head with q's weights moved to the few keys. Same interface.

    proj stays: it reads the branch too, which is as fine as the queries.
    """

    def __init__(self, source: DeployAttention) -> None:
        super().__init__(source)
        self.v, self.proj = source.v, source.proj
        self.up, self.up_norm = source.up, source.up_norm

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        source, reduced = self.reduce(x, grid)
        values = self.v(source)  # (B, M, C)
        context = self.context(self.map(x, source), values.unsqueeze(1)).squeeze(1)
        return self.proj(context + branch(self.up, self.up_norm, values, reduced, grid))


def fold_batch_norm(model: Backbone) -> int:
    """conv, BatchNorm -> conv: see `fold_norm`. Only the stem has them."""
    if not isinstance(model.stem, Stem):
        return 0
    fired = 0
    for conv, norm in pairwise(model.stem.proj):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fold_norm(conv, norm)
            fired += 1
    model.stem = FoldedStem(model.stem)
    return fired


def split_key_value(model: Backbone) -> int:
    """kv -> k and v, as in v1. The branch's PixelShuffle becomes one operator without sizes."""
    fired = 0
    for block in blocks(model):
        if isinstance(block.attn, UpsampledAttention):
            block.attn = DeployAttention(block.attn)
            fired += 1
    return fired


def merge_one_head(model: Backbone) -> int:
    """One head: q needs no GEMM over all tokens. See `OneHeadAttention`."""
    fired = 0
    for block in blocks(model):
        attention = block.attn
        if isinstance(attention, DeployAttention) and attention.heads == 1:
            block.attn = OneHeadAttention(attention)
            fired += 1
    return fired


REWRITES: tuple[Rewrite, ...] = (
    name_no_sizes,
    fold_batch_norm,
    split_key_value,
    fold_scale,
    drop_key_bias,
    merge_one_head,
)


def rewrites(_form: InstanceNormForm) -> tuple[Rewrite, ...]:
    """In their order; there is no InstanceNorm that could have a form."""
    return REWRITES


def _convolution(source: UpsampledAttention) -> nn.Conv2d:
    conv = source.up[0]
    if not isinstance(conv, nn.Conv2d):
        raise InvariantError(f"expected the branch's convolution, got {conv}")
    return conv
