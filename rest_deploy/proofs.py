"""What a build proves of each (block, role) of its engine: the type, the sums."""

from __future__ import annotations

from collections import Counter

from rest_deploy import machine
from rest_deploy.stored import Struct


class Proven(Struct, frozen=True):
    """What one (block, role) was asked to compute in and what its kernels were planned in."""

    block: str
    role: str
    requested: str
    obtained: tuple[str, ...]


class Sums(Struct, frozen=True):
    """Whether the 8-bit sums of one (block, role) are exact on every CPU, proven without data.

    `pair`: the largest sum of two neighbouring weights of one sign, at most 128 where they are; 0
    for a product of two activations, whose operands nothing bounds.
    """

    block: str
    role: str
    pair: int
    exact: bool


def may_saturate(sums: tuple[Sums, ...], backend: str) -> str:
    """Why the 8-bit sums of an INT8 engine may be wrong on this machine, "" where they cannot.

    sums: of its sidecar; none: of a file from before they were listed. backend: with or without
    its provider, "openvino/cpu".
    """
    name, _, provider = backend.partition("/")
    if name not in ("openvino", "onnxruntime") or provider not in ("", "cpu"):
        return ""
    features = machine.features_for(name)
    loose = Counter(found.role for found in sums if not found.exact)
    if machine.adds_bytes_exactly(features) or (sums and not loose):
        return ""
    here = f"this CPU ({machine.instruction_set(features)}) saturates where 8-bit sums are large"
    if not sums:
        return f"{here}, and the file does not say which of its own are bounded"
    roles = ", ".join(f"{role} in {count} blocks" for role, count in loose.items())
    return f"{here}, and nothing bounds those of {roles}"
