"""Shape changes that do not name a size, one torch operator each.

`tensor.reshape(b, n, h, d)` writes the sizes of the traced example into the graph; with symbolic
sizes it writes a chain of integer arithmetic, and tracing takes several times longer. These
operators say the same in ONNX's own terms: 0 keeps an input size, -1 takes what is left, a
map's size is read off another map. The exported graph is dynamic in batch, height and width by
construction. Their ONNX translations: graph/translations.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NAMESPACE = "rest_deploy"


@torch.library.custom_op(f"{NAMESPACE}::reshape", mutates_args=())
def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """ONNX Reshape with a constant shape: 0 copies the size at that place, -1 is inferred."""
    return x.reshape(_sizes(x, shape)).clone()


@reshape.register_fake
def _(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.new_empty(x.reshape(_sizes(x, shape)).shape)


@torch.library.custom_op(f"{NAMESPACE}::to_tokens", mutates_args=())
def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C)."""
    return x.flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)


@to_tokens.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2] * x.shape[3], x.shape[1]))


@torch.library.custom_op(f"{NAMESPACE}::to_grid", mutates_args=())
def to_grid(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W), the shape of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape).clone()


@to_grid.register_fake
def _(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.new_empty(like.shape)


@torch.library.custom_op(f"{NAMESPACE}::depth_to_space", mutates_args=())
def depth_to_space(x: Tensor, like: Tensor, ratio: int) -> Tensor:
    """(B, C*s*s, H', W') -> (B, C, H, W), each cell's channels as s x s pixels in PyTorch's order.

    like: (B, ., H, W) of at most H' * s rows and W' * s columns; what is beyond is cut off.
    """
    fine = torch.nn.functional.pixel_shuffle(x, ratio)
    return fine[:, :, : like.shape[2], : like.shape[3]].clone(memory_format=torch.contiguous_format)


@depth_to_space.register_fake
def _(x: Tensor, like: Tensor, ratio: int) -> Tensor:
    channels = x.shape[1] // (ratio * ratio)
    return x.new_empty((x.shape[0], channels, like.shape[2], like.shape[3]))


@torch.library.custom_op(f"{NAMESPACE}::key_share", mutates_args=())
def key_share(p: Tensor) -> Tensor:
    """(B, h, N, M) -> (1,): 1/M, the mean of a softmax row over M keys."""
    return p.new_full((1,), 1.0 / p.shape[-1])


@key_share.register_fake
def _(p: Tensor) -> Tensor:
    return p.new_empty((1,))


def _sizes(x: Tensor, shape: Sequence[int]) -> list[int]:
    return [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
