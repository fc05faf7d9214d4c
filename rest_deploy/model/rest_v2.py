"""ResT v2, the reference module: official parameter names, any input of at least 32x32.

Zhang and Yang, "ResT V2: Simpler, Faster and Stronger", NeurIPS 2022, arXiv 2204.07366. Against v1:
no head mix and no InstanceNorm in the attention, but a branch beside it that upsamples the values
to the resolution of the queries; a stem of two strided convolutions; a LayerNorm in front of every
stage. Shapes in the comments: B images, N = H*W tokens, C channels, h heads of d = C/h channels,
M = H'*W' keys left after the spatial reduction by s, H' = ceil(H/s), W' = ceil(W/s).
"""

from __future__ import annotations

from torch import Tensor, nn

from rest_deploy.contracts import Architecture, PositionEncoding
from rest_deploy.model.backbone import Backbone, Features, Stage
from rest_deploy.model.rest import Mlp, position_encoding

LAYER_NORM_EPS = 1e-6
"""Of every LayerNorm, as the official code has it; v1's are PyTorch's 1e-5."""


def layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


class Stem(nn.Module):
    """Two strided 3x3 convolutions and a 1x1, a quarter of the resolution.

    `norm` is applied by the stage, which reads tokens.
    """

    def __init__(self, dim: int, position: PositionEncoding) -> None:
        super().__init__()
        hidden = dim // 2
        self.proj = nn.Sequential(
            nn.Conv2d(3, hidden, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, dim, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, kernel_size=1),
        )
        self.pos = position_encoding(position, dim)
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, C, H/4, W/4), rounded up
        return self.pos(self.proj(x))


class PatchEmbedding(nn.Module):
    """Between stages: an overlapping convolution of stride 2. `norm`: see `Stem`."""

    def __init__(self, dim_in: int, dim_out: int, position: PositionEncoding) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim_out, kernel_size=3, stride=2, padding=1)
        self.pos = position_encoding(position, dim_out)
        self.norm = layer_norm(dim_out)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', H/2, W/2), rounded up
        return self.pos(self.proj(x))


class UpsampledAttention(nn.Module):
    """EMSA v2: keys and values from a map reduced by `sr_ratio`; beside the attention a branch that
    restores what the reduction took away, from the values themselves."""

    def __init__(self, dim: int, heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = float((dim // heads) ** -0.5)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.sr: nn.Conv2d | None = None
        self.sr_norm: nn.LayerNorm | None = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(
                dim, dim, sr_ratio + 1, stride=sr_ratio, padding=sr_ratio // 2, groups=dim
            )
            self.sr_norm = layer_norm(dim)
        self.up = nn.Sequential(
            nn.Conv2d(dim, sr_ratio * sr_ratio * dim, 3, padding=1, groups=dim),
            nn.PixelShuffle(sr_ratio),
        )
        self.up_norm = layer_norm(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        b, n, c = x.shape
        h, d = self.heads, c // self.heads
        source, reduced = x, grid
        if self.sr is not None and self.sr_norm is not None:
            reduced = self.sr(x.transpose(1, 2).reshape(grid.shape))  # (B, C, H', W')
            source = self.sr_norm(reduced.flatten(2).transpose(1, 2))  # (B, M, C)
        q = self.q(x).reshape(b, n, h, d).transpose(1, 2)  # (B, h, N, d)
        k, v = self.kv(source).reshape(b, -1, 2, h, d).permute(2, 0, 3, 1, 4)  # 2 x (B, h, M, d)
        p = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)  # (B, h, N, M)
        context = (p @ v).transpose(1, 2).reshape(b, n, c)  # (B, N, C)
        return self.proj(context + self.branch(v.transpose(-2, -1).reshape(reduced.shape), grid))

    def branch(self, values: Tensor, grid: Tensor) -> Tensor:
        """values: (B, C, H', W'); grid: (B, C, H, W). -> (B, N, C).

        Where H is no multiple of s the upsampled map, of H' * s rows, is larger than the grid; its
        last rows and columns are cut off. The official code fails there: this is the extension that
        keeps every pixel at the place it has where that one runs.
        """
        fine = self.up(values)[:, :, : grid.shape[2], : grid.shape[3]]  # (B, C, H, W)
        return self.up_norm(fine.flatten(2).transpose(1, 2))


class Block(nn.Module):
    def __init__(self, architecture: Architecture, stage: int) -> None:
        super().__init__()
        dim = architecture.dims[stage]
        self.norm1 = layer_norm(dim)
        self.attn: nn.Module = UpsampledAttention(
            dim, architecture.heads[stage], architecture.sr_ratios[stage]
        )
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, architecture.mlp_ratio)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:  # see UpsampledAttention
        x = x + self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))


class ResTV2(Backbone):
    """The classifier. Weights are initialized as published (truncated normal, std 0.02).

    `num_classes` 0: no head, `forward` returns the pooled embedding (B, C4).
    """

    OUTPUT_NORMS = ("norm_1", "norm_2", "norm_3", "norm_4")

    def __init__(self, architecture: Architecture, num_classes: int = 1000) -> None:
        super().__init__()
        dims, position = architecture.dims, architecture.position_encoding

        def stage(index: int) -> Stage:
            return Stage(Block(architecture, index) for _ in range(architecture.depths[index]))

        self.stem = Stem(dims[0], position)
        self.patch_2 = PatchEmbedding(dims[0], dims[1], position)
        self.patch_3 = PatchEmbedding(dims[1], dims[2], position)
        self.patch_4 = PatchEmbedding(dims[2], dims[3], position)
        self.stage1 = stage(0)
        self.stage2 = stage(1)
        self.stage3 = stage(2)
        self.stage4 = stage(3)
        self.norm = layer_norm(dims[3])
        self.head = nn.Linear(dims[3], num_classes) if num_classes else nn.Identity()
        self.apply(_initialize)

    def features(self, image: Tensor) -> Features:
        c2 = self.stage1(self.stem(image), self.stem.norm)
        c3 = self.stage2(self.patch_2(c2), self.patch_2.norm)
        c4 = self.stage3(self.patch_3(c3), self.patch_3.norm)
        grid = self.patch_4(c4)
        return Features(c2, c3, c4, self.stage4.tokens(grid, self.patch_4.norm), grid)

    def behind_norms(self, features: Features) -> Features:
        # Unlike v1's they change no map but their own.
        c2, c3, c4, tokens = (self.output_norm(stage, features[stage]) for stage in range(4))
        return Features(c2, c3, c4, tokens, features.grid)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
