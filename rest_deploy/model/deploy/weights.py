"""Folding of weights, in the dtype they are in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rest_deploy.errors import InvariantError


def half(kv: nn.Linear, part: int, dim: int) -> nn.Linear:
    """k (part 0) or v (part 1) of a fused kv."""
    rows = slice(part * dim, (part + 1) * dim)
    made = linear(kv.weight[rows].clone())
    if kv.bias is not None:
        made.bias = nn.Parameter(kv.bias[rows].clone(), requires_grad=False)
    return made


def linear(weight: Tensor) -> nn.Linear:
    """Without a bias."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def scale_linear(layer: nn.Linear, factor: float) -> None:
    layer.weight = nn.Parameter(layer.weight * factor, requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias * factor, requires_grad=False)


def drop_bias(module: nn.Linear | nn.Conv2d) -> Tensor | None:
    """Remove the bias; returns what it was."""
    bias = dict(module.named_parameters(recurse=False)).get("bias")
    module.register_parameter("bias", None)
    return bias


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> None:
    """conv, BatchNorm -> conv with bias: g = gamma / std, w' = w g, b' = (b - mean) g + beta."""
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if not isinstance(norm, nn.BatchNorm2d) or mean is None or variance is None:
        raise InvariantError(f"expected a BatchNorm2d with statistics, got {norm}")
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    bias = torch.zeros_like(gain) if conv.bias is None else conv.bias
    conv.weight = nn.Parameter(conv.weight * gain[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter((bias - mean) * gain + norm.bias, requires_grad=False)
