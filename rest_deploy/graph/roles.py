"""Node name -> (block, role): the vocabulary of recipes, reports and precision proofs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal[
    "stem", "patch", "pa", "qkv", "offset", "scores", "transform", "norm", "context", "proj", "sr",
    "up", "mlp", "head",
]  # fmt: skip
"""A block's own names. qkv: the three projections; offset: q's bias as one number a key, of an
attention with one head, which has no q (and in v1 no proj); scores: q k^T; transform: the head mix;
norm: what stands between softmax and context; context: map times v; mlp: fc1 and fc2;
pa: the position encoding's depthwise convolution; sr: the spatial reduction's; up: that of the
branch beside the attention (ResT v2), which brings the values back to the queries' resolution."""

ROLES: tuple[Role, ...] = get_args(Role)

_PATTERNS: tuple[tuple[str, Role], ...] = (
    (r"stem\.conv\d\.Conv", "stem"),
    (r"patch_(embed_\d\.conv|\d\.proj)\.Conv", "patch"),
    (r".*\.pos\.(pa|gl)_conv\.Conv", "pa"),
    (r".*\.attn\.[qkv]\.MatMul", "qkv"),
    (r".*\.attn\.k_offset\.MatMul", "offset"),
    (r".*\.attn\.scores\.MatMul", "scores"),
    (r".*\.attn\.transform_conv\.Conv", "transform"),
    (r".*\.attn\.norm\..*", "norm"),
    (r".*\.attn\.context\.MatMul", "context"),
    (r".*\.attn\.proj\.MatMul", "proj"),
    (r".*\.attn\.sr\.Conv", "sr"),
    (r".*\.attn\.up\.Conv", "up"),
    (r".*\.mlp\.fc[12]\.MatMul", "mlp"),
    (r"head\.(Gemm|MatMul)", "head"),
)


@dataclass(frozen=True)
class Place:
    """A computing node's place: block "stage3.4", "patch_embed_2" (v2: "patch_2"), "stem.conv2" or
    "head", and role."""

    block: str
    role: Role

    def __str__(self) -> str:
        return f"{self.block}:{self.role}"


def within(place: Place, entry: str) -> bool:
    """Whether a recipe's entry, "stage2.0:proj", "stage1:mlp" or "stem:stem", covers `place`."""
    name, _, role = entry.partition(":")
    return place.role == role and (place.block == name or place.block.startswith(f"{name}."))


def place(node_name: str) -> Place | None:
    """The place of a node, None for one without a role (reshapes, residual adds, LayerNorms)."""
    for pattern, role in _PATTERNS:
        if re.fullmatch(pattern, node_name):
            return Place(block(node_name), role)
    return None


def block(node_name: str) -> str:
    """ "stage3.4.attn.q.MatMul" -> "stage3.4"; other nodes -> the first part of their name."""
    match = re.match(r"(stage\d\.\d+|stem\.conv\d)(?=\.)", node_name)
    return match[0] if match else node_name.split(".")[0]


Kind = Literal["gemm", "conv", "attention", "norm", "other"]
"""Of work, where time is told. gemm: products with weights; attention: the two products, head mix,
softmax and InstanceNorm; norm: LayerNorm; other: activations, residuals, layout, Q/DQ."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_OF_ROLE: dict[Role, Kind] = {
    "stem": "conv", "patch": "conv", "pa": "conv", "sr": "conv", "up": "conv",
    "qkv": "gemm", "offset": "gemm", "proj": "gemm", "mlp": "gemm", "head": "gemm",
    "scores": "attention", "transform": "attention", "norm": "attention", "context": "attention",
}  # fmt: skip

_OF_OPERATOR: dict[str, Kind] = {
    **dict.fromkeys(
        ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "Convolution"), "conv"
    ),
    **dict.fromkeys(
        ("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulInteger",
         "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FullyConnected"),
        "gemm",
    ),
    "Softmax": "attention",
    **dict.fromkeys(("LayerNormalization", "SkipLayerNormalization", "MVN"), "norm"),
}  # fmt: skip
"""ONNX's operators, and what ONNX Runtime and OpenVINO make of them."""

_PARTS: tuple[tuple[str, str], ...] = (
    (r"stem\..*", "stem"),
    (r"patch_(?:embed_)?(\d)\..*", r"patch\1"),
    (r"(stage\d\.\d+)\..*", r"\1"),
    (r"(head|norm)\..*", "head"),
)


def part(node_name: str) -> str | None:
    """Which part of a ResT, as times are told: "stem", "patch2", "stage1.0" or "head", the last
    LayerNorm with it; None for a node between them, which belongs to what reads it."""
    for pattern, name in _PARTS:
        match = re.fullmatch(pattern, node_name)
        if match:
            return match.expand(name)
    return None


def kind(node_name: str, operator: str) -> Kind:
    """What kind of work a node is: by its role, and where it has none by its operator."""
    found = place(node_name)
    if found is not None and not node_name.endswith("Linear"):  # a Q or DQ of the attention's norm
        return _OF_ROLE[found.role]
    if re.fullmatch(r".*\.attn\.level\..*", node_name):  # it scales the map with the norm
        return "attention"
    return _OF_OPERATOR.get(operator, "other")
