"""What a ResT looks like inside: the dimensions that tell one variant from another."""

from __future__ import annotations

from typing import Literal

from rest_deploy.stored import Struct

Family = Literal["rest", "rest_v2"]
PositionEncoding = Literal["pa", "gl", "none"]


class Architecture(Struct, frozen=True):
    """The dimensions of a ResT. Every tuple has one entry per stage.

    `head_mix` is EMSA's 1x1 convolution over the heads before the softmax, `attention_norm` the
    InstanceNorm after it; both exist only where heads > 1. ResT v2 has neither, and always a qkv
    bias; its position encoding is "pa" or "none".
    """

    family: Family
    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    sr_ratios: tuple[int, int, int, int]
    mlp_ratio: int = 4
    qkv_bias: bool = True
    position_encoding: PositionEncoding = "pa"
    head_mix: bool = True
    attention_norm: bool = True

    def __post_init__(self) -> None:
        if self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
        for name in ("dims", "depths", "heads", "sr_ratios"):
            values = getattr(self, name)
            if min(values) < 1:
                raise ValueError(f"{name} must be positive, got {list(values)}")
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise ValueError(f"dims must be multiples of heads, got {dim} for {heads} heads")
        if self.dims[0] % 2:
            raise ValueError(f"dims[0] must be even (the stem has half of it), got {self.dims[0]}")
        if self.family == "rest_v2":
            self._check_v2()
        elif self.attention_norm and not self.head_mix:
            raise ValueError("attention_norm needs head_mix: EMSA has both, the mix alone, or none")

    def _check_v2(self) -> None:
        if self.head_mix or self.attention_norm:
            raise ValueError(
                "rest_v2 has neither a head mix nor an attention norm: head_mix and "
                "attention_norm must be false"
            )
        if not self.qkv_bias or self.position_encoding == "gl":
            raise ValueError(
                'rest_v2 has qkv_bias = true and position_encoding "pa" or "none", got '
                f"{str(self.qkv_bias).lower()} and {self.position_encoding!r}"
            )
        # An odd kernel padded by half of it reduces H to ceil(H / s): what is upsampled by s then
        # covers the map it came from.
        if any(ratio > 1 and ratio % 2 for ratio in self.sr_ratios):
            raise ValueError(f"sr_ratios of rest_v2 must be 1 or even, got {list(self.sr_ratios)}")
