"""What a ResT looks like inside: the dimensions that tell one variant from another."""

from __future__ import annotations

from typing import Literal

from rest_deploy.stored import Struct

Family = Literal["rest"]
PositionEncoding = Literal["pa", "gl", "none"]


class Architecture(Struct, frozen=True):
    """The dimensions of a ResT (v1). Every tuple has one entry per stage.

    `head_mix` is EMSA's 1x1 convolution over the heads before the softmax,
    `attention_norm` the InstanceNorm after it; both exist only where heads > 1.
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
        if self.attention_norm and not self.head_mix:
            raise ValueError("attention_norm needs head_mix: EMSA has both, the mix alone, or none")
