"""Exact rewrites of ResT (v1). The order of `REWRITES` matters: the attention is first replaced by
one with separate k and v, which the others then simplify.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rest_deploy.contracts import InstanceNormForm
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
from rest_deploy.model.deploy.weights import drop_bias, fold_norm, linear
from rest_deploy.model.rest import (
    INSTANCE_NORM_EPS,
    EfficientAttention,
    MapNorm,
    PatchEmbedding,
    Stem,
)
from rest_deploy.model.shape_ops import key_share


class PlainMap(nn.Module):
    """Attention without InstanceNorm (one head, or the ablation)."""

    def forward(self, p: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return p, v


class DecomposedNorm(nn.Module):
    """InstanceNorm of the map by its definition, in elementary operations."""

    def __init__(self) -> None:
        super().__init__()
        self.map_norm = MapNorm()

    def forward(self, p: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.map_norm(p), v


class NativeNorm(nn.Module):
    """InstanceNorm of the map as the ONNX operator InstanceNormalization."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.ones(heads))
        self.bias = nn.Buffer(torch.zeros(heads))

    def forward(self, p: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.onnx.is_in_onnx_export():
            return torch.instance_norm(
                p, self.weight, self.bias, None, None, True, 0.0, INSTANCE_NORM_EPS, False
            ), v
        normed = torch.onnx.ops.symbolic(
            "InstanceNormalization",
            (p, self.weight, self.bias),
            {"epsilon": INSTANCE_NORM_EPS},
            dtype=p.dtype,
            shape=p.shape,
        )
        return normed, v


class FoldedNorm(nn.Module):
    """InstanceNorm moved to v. With M keys, D = P - 1/M, r = rsqrt(mean(D^2) + eps) and
    v0 = v - (mean of v over the keys): IN(P) @ v = D @ (v0 * r).

    A softmax row sums to 1, so the mean of the N x M map is exactly 1/M and needs no reduction;
    r is one number per (image, head), and v is the small operand. Rows of D sum to 0, so v's
    mean over the keys adds nothing; without it the rounding of a row's softmax denominator, the
    same for all its keys, cancels instead of being amplified (30 times less error on near-uniform
    attention). mean(P^2) - 1/M^2 would cancel: never write it so. Derivation and measured errors:
    docs/instance-norm.md.
    """

    def forward(self, p: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        centred = p - key_share(p)  # (B, h, N, M)
        variance = (centred * centred).mean(dim=(-2, -1), keepdim=True)  # (B, h, 1, 1)
        v = v - v.mean(dim=-2, keepdim=True)  # (B, h, M, d)
        return centred, v * torch.rsqrt(variance + INSTANCE_NORM_EPS)


class DeployAttention(SplitAttention):
    """EMSA with q, k and v apart, for export. Same interface as the reference's."""

    def __init__(self, source: EfficientAttention) -> None:
        super().__init__(source)
        self.transform_conv = source.transform_conv
        self.norm: nn.Module = DecomposedNorm() if source.transform_norm else PlainMap()

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        source, _ = self.reduce(x, grid)  # (B, M, C)
        q, k, v = self.by_head(self.q(x), self.k(source), self.v(source))
        scores = self.scaled(q, k)  # (B, h, N, M)
        if self.transform_conv is not None:
            scores = self.transform_conv(scores)
        p, v = self.norm(scores.softmax(dim=-1), v)
        return self.proj(self.joined(self.context(p, v)))


class OneHeadAttention(OneHead):
    """EMSA of one head with q's and proj's weights moved to the few keys. Same interface.

    Beside what `OneHead` says: (P (y Wv)) Wo = P (y (Wv Wo)), another GEMM of N x C x C less.
    """

    def __init__(self, source: DeployAttention) -> None:
        super().__init__(source)
        self.v = linear(source.proj.weight @ source.v.weight)
        self.bias = nn.Parameter(source.proj.bias, requires_grad=False)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        source, _ = self.reduce(x, grid)  # (B, M, C)
        p = self.map(x, source)  # (B, 1, N, M)
        return self.context(p, self.v(source).unsqueeze(1)).squeeze(1) + self.bias


def split_key_value(model: Backbone) -> int:
    """kv -> k and v, which the recipes and the next rewrites take one by one. NVIDIA's builder was
    seen planning a fused kv with per-channel INT8 in FP16, not in every version and graph; two
    GEMMs of one input it merges by itself."""
    fired = 0
    for block in blocks(model):
        if isinstance(block.attn, EfficientAttention):
            block.attn = DeployAttention(block.attn)
            fired += 1
    return fired


def fold_batch_norm(model: Backbone) -> int:
    """conv, BatchNorm -> conv: see `fold_norm`."""
    fired = 0
    for module in model.modules():
        if isinstance(module, Stem):
            fold_norm(module.conv1, module.norm1)
            fold_norm(module.conv2, module.norm2)
            module.norm1, module.norm2 = nn.Identity(), nn.Identity()
            fired += 2
        elif isinstance(module, PatchEmbedding):
            fold_norm(module.conv, module.norm)
            module.norm = nn.Identity()
            fired += 1
    return fired


def drop_mix_bias(model: Backbone) -> int:
    """transform_conv's bias is constant over the keys; the softmax ignores it."""
    mixes = [attention.transform_conv for attention in _attentions(model)]
    return sum(mix is not None and drop_bias(mix) is not None for mix in mixes)


def move_value_bias(model: Backbone) -> int:
    """v's bias leaves the attention: a row of the map times a constant is row sum * constant.

    After the InstanceNorm a row sums to 0, so the bias vanishes; a plain softmax row sums to 1,
    so it adds proj.weight @ b to proj's bias.
    """
    fired = 0
    for attention in _attentions(model):
        bias = drop_bias(attention.v)
        if bias is not None and isinstance(attention.norm, PlainMap):
            moved = attention.proj.weight @ bias
            attention.proj.bias = nn.Parameter(attention.proj.bias + moved, requires_grad=False)
        fired += bias is not None
    return fired


def merge_one_head(model: Backbone) -> int:
    """One head: q and proj need no GEMM over all tokens. See `OneHeadAttention`."""
    fired = 0
    for block in blocks(model):
        attention = block.attn
        if isinstance(attention, DeployAttention) and attention.heads == 1:
            block.attn = OneHeadAttention(attention)
            fired += 1
    return fired


def fold_instance_norm(model: Backbone) -> int:
    """The default form: see `FoldedNorm`."""
    return _replace_norm(model, lambda _heads: FoldedNorm())


def native_instance_norm(model: Backbone) -> int:
    """The ONNX operator, for comparison and for runtimes that fuse it."""
    return _replace_norm(model, NativeNorm)


REWRITES: tuple[Rewrite, ...] = (
    name_no_sizes,
    fold_batch_norm,
    split_key_value,
    fold_scale,
    drop_key_bias,
    drop_mix_bias,
    move_value_bias,
    merge_one_head,
)

NORM_REWRITES: dict[InstanceNormForm, tuple[Rewrite, ...]] = {
    "folded": (fold_instance_norm,),
    "native": (native_instance_norm,),
    "decomposed": (),
}


def rewrites(form: InstanceNormForm) -> tuple[Rewrite, ...]:
    """In their order; `form`: of the InstanceNorm on the attention map."""
    return (*REWRITES, *NORM_REWRITES[form])


def _attentions(model: Backbone) -> list[DeployAttention]:
    return [module for module in model.modules() if isinstance(module, DeployAttention)]


def _replace_norm(model: Backbone, build: Callable[[int], nn.Module]) -> int:
    fired = 0
    for attention in _attentions(model):
        if isinstance(attention.norm, DecomposedNorm):
            attention.norm = build(attention.heads).to(attention.q.weight.dtype)
            fired += 1
    return fired
