"""Exact rewrites: the reference module -> a module with the same function and less to do.

Each rewrite is an identity of real arithmetic, proven in float64 by tests/model/test_deploy.py.
Weights are folded in float64 and rounded once. The order of `REWRITES` matters:
the attention is first replaced by one with separate k and v, which the others then simplify.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rest_deploy.contracts import InstanceNormForm
from rest_deploy.errors import InvariantError
from rest_deploy.model.backbone import Backbone, Stage
from rest_deploy.model.rest import (
    INSTANCE_NORM_EPS,
    EfficientAttention,
    MapNorm,
    PatchEmbedding,
    Stem,
)
from rest_deploy.model.shape_ops import key_share, reshape, to_grid, to_tokens

STAGES = ("stage1", "stage2", "stage3", "stage4")


class Scores(nn.Module):
    """q k^T; the scale is in q's weights."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:  # (B, h, N, d), (B, h, d, M) -> (B, h, N, M)
        return q @ k


class Context(nn.Module):
    """The attention map (or its centred form) times v."""

    def forward(self, p: Tensor, v: Tensor) -> Tensor:  # (B, h, N, M), (B, h, M, d) -> (B, h, N, d)
        return p @ v


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


class DeployAttention(nn.Module):
    """EMSA with q, k and v apart, for export. Same interface as the reference's."""

    def __init__(self, source: EfficientAttention) -> None:
        super().__init__()
        dim = source.q.in_features
        self.heads = source.heads
        self.scale = source.scale
        self.q, self.proj = source.q, source.proj
        self.k, self.v = (_half(source.kv, part, dim) for part in (0, 1))
        self.sr, self.sr_norm = source.sr, source.sr_norm
        self.scores, self.context = Scores(), Context()
        self.transform_conv = source.transform_conv
        self.norm: nn.Module = DecomposedNorm() if source.transform_norm else PlainMap()

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        h, d = self.heads, x.shape[2] // self.heads
        source = x
        if self.sr is not None and self.sr_norm is not None:
            source = self.sr_norm(to_tokens(self.sr(to_grid(x, grid))))  # (B, M, C)
        q, k, v = self.q(x), self.k(source), self.v(source)
        if h == 1:  # nothing to transpose
            q, k, v = q.unsqueeze(1), k.unsqueeze(1).transpose(2, 3), v.unsqueeze(1)
        else:
            q = reshape(q, [0, 0, h, d]).transpose(1, 2)  # (B, h, N, d)
            k = reshape(k, [0, 0, h, d]).permute(0, 2, 3, 1)  # (B, h, d, M)
            v = reshape(v, [0, 0, h, d]).transpose(1, 2)  # (B, h, M, d)
        scores = self.scores(q, k)
        if self.scale != 1.0:
            scores = scores * self.scale
        if self.transform_conv is not None:
            scores = self.transform_conv(scores)
        p, v = self.norm(scores.softmax(dim=-1), v)
        context = self.context(p, v)  # (B, h, N, d)
        context = context.squeeze(1) if h == 1 else reshape(context.transpose(1, 2), [0, 0, h * d])
        return self.proj(context)


class OneHeadAttention(nn.Module):
    """EMSA of one head with q's and proj's weights moved to the few keys. Same interface.

    For x the N tokens and y the M reduced ones, scores = (x Wq + bq)(y Wk)^T = x (y Wk Wq^T)^T +
    (y Wk bq)^T, and (P (y Wv)) Wo = P (y (Wv Wo)): two GEMMs of N x C x C less, nothing more.
    With h heads the products would be h times wider, which costs more than it saves from M = C on.
    """

    def __init__(self, source: DeployAttention) -> None:
        super().__init__()
        q, k, v, proj = source.q, source.k, source.v, source.proj
        self.sr, self.sr_norm = source.sr, source.sr_norm
        self.k = _linear(q.weight.T @ k.weight)
        self.k_offset = _linear(q.bias[None] @ k.weight) if q.bias is not None else None
        self.v = _linear(proj.weight @ v.weight)
        self.scores, self.context = Scores(), Context()
        self.bias = nn.Parameter(proj.bias, requires_grad=False)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """x: (B, N, C) tokens; grid: (B, C, H, W), a map of their layout. -> (B, N, C)."""
        source = x
        if self.sr is not None and self.sr_norm is not None:
            source = self.sr_norm(to_tokens(self.sr(to_grid(x, grid))))  # (B, M, C)
        k = self.k(source).unsqueeze(1).transpose(2, 3)  # (B, 1, C, M)
        scores = self.scores(x.unsqueeze(1), k)  # (B, 1, N, M)
        if self.k_offset is not None:
            scores = scores + self.k_offset(source).unsqueeze(1).transpose(2, 3)  # (B, 1, 1, M)
        context = self.context(scores.softmax(dim=-1), self.v(source).unsqueeze(1))
        return context.squeeze(1) + self.bias


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


def name_no_sizes(model: Backbone) -> int:
    """Stages with shape operators that do not name a size: see `shape_ops`."""
    for name in STAGES:
        setattr(model, name, DeployStage(getattr(model, name)))
    return len(STAGES)


def split_key_value(model: Backbone) -> int:
    """kv -> k and v, which the recipes and the next rewrites take one by one. NVIDIA's builder was
    seen planning a fused kv with per-channel INT8 in FP16, not in every version and graph; two
    GEMMs of one input it merges by itself."""
    fired = 0
    for block in _blocks(model):
        if isinstance(block.attn, EfficientAttention):
            block.attn = DeployAttention(block.attn)
            fired += 1
    return fired


def fold_batch_norm(model: Backbone) -> int:
    """conv, BatchNorm -> conv with bias: g = gamma / std, w' = w g, b' = (b - mean) g + beta."""
    fired = 0
    for module in model.modules():
        if isinstance(module, Stem):
            _fold(module.conv1, module.norm1)
            _fold(module.conv2, module.norm2)
            module.norm1, module.norm2 = nn.Identity(), nn.Identity()
            fired += 2
        elif isinstance(module, PatchEmbedding):
            _fold(module.conv, module.norm)
            module.norm = nn.Identity()
            fired += 1
    return fired


def fold_scale(model: Backbone) -> int:
    """(q k^T) * scale -> (scale q) k^T, the scale in q's weight and bias."""
    for attention in _attentions(model):
        _scale_linear(attention.q, attention.scale)
        attention.scale = 1.0
    return len(_attentions(model))


def drop_key_bias(model: Backbone) -> int:
    """k's bias adds the same q_n . b to a whole row of scores, also after the mix: no effect."""
    return sum(_drop_bias(attention.k) is not None for attention in _attentions(model))


def drop_mix_bias(model: Backbone) -> int:
    """transform_conv's bias is constant over the keys; the softmax ignores it."""
    mixes = [attention.transform_conv for attention in _attentions(model)]
    return sum(mix is not None and _drop_bias(mix) is not None for mix in mixes)


def move_value_bias(model: Backbone) -> int:
    """v's bias leaves the attention: a row of the map times a constant is row sum * constant.

    After the InstanceNorm a row sums to 0, so the bias vanishes; a plain softmax row sums to 1,
    so it adds proj.weight @ b to proj's bias.
    """
    fired = 0
    for attention in _attentions(model):
        bias = _drop_bias(attention.v)
        if bias is not None and isinstance(attention.norm, PlainMap):
            moved = attention.proj.weight @ bias
            attention.proj.bias = nn.Parameter(attention.proj.bias + moved, requires_grad=False)
        fired += bias is not None
    return fired


def merge_one_head(model: Backbone) -> int:
    """One head: q and proj need no GEMM over all tokens. See `OneHeadAttention`."""
    fired = 0
    for block in _blocks(model):
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


Rewrite = Callable[[Backbone], int]
"""Changes the module in place; returns how often it fired."""

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


def to_deploy(
    model: Backbone, form: InstanceNormForm = "folded"
) -> tuple[Backbone, dict[str, int]]:
    """A rewritten copy in the dtype of `model`, and how often each rewrite fired.

    Raises `InvariantError` when a rewrite fired on fewer places than the architecture has.
    """
    dtype = next(model.parameters()).dtype
    deployed = copy.deepcopy(model).eval().requires_grad_(False).double()
    fired = {rewrite.__name__: rewrite(deployed) for rewrite in (*REWRITES, *NORM_REWRITES[form])}
    expected = {"fold_batch_norm": 5, "split_key_value": len(_blocks(model))}
    for name, count in expected.items():
        if fired[name] != count:
            raise InvariantError(f"rewrite {name} fired {fired[name]} times, expected {count}")
    return deployed.requires_grad_(False).to(dtype), fired


def _blocks(model: Backbone) -> list[nn.Module]:
    return [block for stage in STAGES for block in getattr(model, stage)]


def _attentions(model: Backbone) -> list[DeployAttention]:
    return [module for module in model.modules() if isinstance(module, DeployAttention)]


def _replace_norm(model: Backbone, build: Callable[[int], nn.Module]) -> int:
    fired = 0
    for attention in _attentions(model):
        if isinstance(attention.norm, DecomposedNorm):
            attention.norm = build(attention.heads).to(attention.q.weight.dtype)
            fired += 1
    return fired


def _half(kv: nn.Linear, part: int, dim: int) -> nn.Linear:
    rows = slice(part * dim, (part + 1) * dim)
    linear = nn.Linear(dim, dim, bias=kv.bias is not None, dtype=kv.weight.dtype)
    linear.weight = nn.Parameter(kv.weight[rows].clone(), requires_grad=False)
    if kv.bias is not None:
        linear.bias = nn.Parameter(kv.bias[rows].clone(), requires_grad=False)
    return linear


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _scale_linear(linear: nn.Linear, factor: float) -> None:
    linear.weight = nn.Parameter(linear.weight * factor, requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias * factor, requires_grad=False)


def _drop_bias(module: nn.Linear | nn.Conv2d) -> Tensor | None:
    """Remove the bias; returns what it was."""
    bias = dict(module.named_parameters(recurse=False)).get("bias")
    module.register_parameter("bias", None)
    return bias


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(norm, nn.BatchNorm2d) or mean is None or variance is None:
        raise InvariantError(f"expected a BatchNorm2d with statistics, got {norm}")
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    bias = torch.zeros_like(gain) if conv.bias is None else conv.bias
    conv.weight = nn.Parameter(conv.weight * gain[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter((bias - mean) * gain + norm.bias, requires_grad=False)
