"""What a build proves of each (block, role) of its engine: the type, the sums."""

from __future__ import annotations

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
