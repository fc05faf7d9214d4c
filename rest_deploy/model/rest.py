"""ResT (v1), the reference module: official parameter names, any input of at least 32x32.

Zhang and Yang, "ResT: An Efficient Transformer for Visual Recognition", NeurIPS 2021,
arXiv 2105.13677. Shapes in the comments: B images, N = H*W tokens, C channels, h heads of
d = C/h channels, M keys left after the spatial reduction by s.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rest_deploy.contracts import Architecture, PositionEncoding
from rest_deploy.model.backbone import Backbone, Features, Stage

INSTANCE_NORM_EPS = 1e-5
"""PyTorch's default, which the official InstanceNorm2d uses."""


class PixelAttention(nn.Module):
    """PA, the published position encoding: x * sigmoid(depthwise conv3x3(x))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pa_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        return x * torch.sigmoid(self.pa_conv(x))


class GroupLocal(nn.Module):
    """GL, the ablation's additive position encoding: x + depthwise conv3x3(x)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gl_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        return x + self.gl_conv(x)


def position_encoding(kind: PositionEncoding, dim: int) -> nn.Module:
    if kind == "pa":
        return PixelAttention(dim)
    if kind == "gl":
        return GroupLocal(dim)
    return nn.Identity()


class Stem(nn.Module):
    """Three 3x3 convolutions, a quarter of the resolution."""

    def __init__(self, dim: int, position: PositionEncoding) -> None:
        super().__init__()
        hidden = dim // 2
        self.conv1 = nn.Conv2d(3, hidden, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm1: nn.Module = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, kernel_size=3, stride=2, padding=1, bias=False)
        self.pos = position_encoding(position, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, C, H/4, W/4), rounded up
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.pos(self.conv3(x))


class PatchEmbedding(nn.Module):
    """Between stages: an overlapping convolution of stride 2."""

    def __init__(self, dim_in: int, dim_out: int, position: PositionEncoding) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel_size=3, stride=2, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(dim_out)
        self.pos = position_encoding(position, dim_out)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', H/2, W/2), rounded up
        return self.pos(self.norm(self.conv(x)))


class MapNorm(nn.Module):
    """InstanceNorm2d without affine parameters over each (image, head) attention map.

    Written out (two passes over the map) because `nn.InstanceNorm2d` refuses the one-token map
    of a 32x32 input; there the result is 0, the limit of the formula.
    """

    def forward(self, p: Tensor) -> Tensor:  # (B, h, N, M) -> (B, h, N, M)
        centred = p - p.mean(dim=(-2, -1), keepdim=True)
        variance = centred.square().mean(dim=(-2, -1), keepdim=True)
        return centred * torch.rsqrt(variance + INSTANCE_NORM_EPS)


class EfficientAttention(nn.Module):
    """EMSA: keys and values from a map reduced by `sr_ratio`, heads mixed before the softmax."""

    def __init__(
        self, dim: int, heads: int, sr_ratio: int, *, qkv_bias: bool, mix: bool, norm: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = float((dim // heads) ** -0.5)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.sr: nn.Conv2d | None = None
        self.sr_norm: nn.LayerNorm | None = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(
                dim, dim, sr_ratio + 1, stride=sr_ratio, padding=sr_ratio // 2, groups=dim
            )
            self.sr_norm = nn.LayerNorm(dim)
        # A single head has nothing to mix, and the official code then skips the norm as well.
        self.transform_conv = nn.Conv2d(heads, heads, 1) if mix and heads > 1 else None
        self.transform_norm = MapNorm() if norm and heads > 1 else None

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        b, n, c = x.shape
        h, d = self.heads, c // self.heads
        source = x
        if self.sr is not None and self.sr_norm is not None:
            reduced = self.sr(x.transpose(1, 2).reshape(grid.shape))  # (B, C, H/s, W/s)
            source = self.sr_norm(reduced.flatten(2).transpose(1, 2))  # (B, M, C)
        q = self.q(x).reshape(b, n, h, d).transpose(1, 2)  # (B, h, N, d)
        k, v = self.kv(source).reshape(b, -1, 2, h, d).permute(2, 0, 3, 1, 4)  # 2 x (B, h, M, d)
        scores = (q @ k.transpose(-2, -1)) * self.scale  # (B, h, N, M)
        if self.transform_conv is not None:
            scores = self.transform_conv(scores)
        p = scores.softmax(dim=-1)
        if self.transform_norm is not None:
            p = self.transform_norm(p)
        context = (p @ v).transpose(1, 2).reshape(b, n, c)  # (B, N, C)
        return self.proj(context)


class Mlp(nn.Module):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * ratio)
        self.act = nn.GELU()  # exact (erf), as published
        self.fc2 = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, N, C)
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, architecture: Architecture, stage: int) -> None:
        super().__init__()
        dim = architecture.dims[stage]
        self.norm1 = nn.LayerNorm(dim)
        self.attn: nn.Module = EfficientAttention(
            dim,
            architecture.heads[stage],
            architecture.sr_ratios[stage],
            qkv_bias=architecture.qkv_bias,
            mix=architecture.head_mix,
            norm=architecture.attention_norm,
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, architecture.mlp_ratio)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:  # see EfficientAttention
        x = x + self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))


class ResT(Backbone):
    """The classifier. Weights are initialized as published (truncated normal, std 0.02).

    `num_classes` 0: no head, `forward` returns the pooled embedding (B, C4).
    """

    OUTPUT_NORMS = ("norm1", "norm2", "norm3")

    def __init__(self, architecture: Architecture, num_classes: int = 1000) -> None:
        super().__init__()
        dims, position = architecture.dims, architecture.position_encoding

        def stage(index: int) -> Stage:
            return Stage(Block(architecture, index) for _ in range(architecture.depths[index]))

        self.stem = Stem(dims[0], position)
        self.patch_embed_2 = PatchEmbedding(dims[0], dims[1], position)
        self.patch_embed_3 = PatchEmbedding(dims[1], dims[2], position)
        self.patch_embed_4 = PatchEmbedding(dims[2], dims[3], position)
        self.stage1 = stage(0)
        self.stage2 = stage(1)
        self.stage3 = stage(2)
        self.stage4 = stage(3)
        self.norm = nn.LayerNorm(dims[3])
        self.head = nn.Linear(dims[3], num_classes) if num_classes else nn.Identity()
        self.apply(_initialize)

    def features(self, image: Tensor) -> Features:
        # The official detector feeds the normalized map to the next stage.
        c2 = self.output_norm(0, self.stage1(self.stem(image)))
        c3 = self.output_norm(1, self.stage2(self.patch_embed_2(c2)))
        c4 = self.output_norm(2, self.stage3(self.patch_embed_3(c3)))
        grid = self.patch_embed_4(c4)
        return Features(c2, c3, c4, self.stage4.tokens(grid), grid)

    def behind_norms(self, features: Features) -> Features:
        # Of a detector, `norm` is the one of stage 4.
        if not any(name in self._modules for name in self.OUTPUT_NORMS):
            return features
        return features._replace(tokens=self.norm(features.tokens))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
