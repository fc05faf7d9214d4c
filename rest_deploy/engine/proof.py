"""Is it really INT8? What was asked for, block by block and role by role, and what was planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rest_deploy.contracts import Precision, Proven, Rest
from rest_deploy.engine.tensorrt_plan import MATRIX_TYPES, PlannedLayer
from rest_deploy.errors import VerificationError

if TYPE_CHECKING:
    from rest_deploy.graph.roles import Place

DATATYPES = {"Int8": "int8", "FP8": "fp8", "Half": "fp16", "BFloat16": "bf16", "Float": "fp32"}
"""NVIDIA's names in ours."""

DEPTHWISE = ("pa", "sr", "up")
EIGHT_BITS = frozenset({"int8", "fp8"})


def requested(
    places: Iterable[Place], precision: Precision, quantized: Iterable[Place], rest: Rest = "fp32"
) -> dict[Place, str]:
    """Per place of the model what was asked for. quantized: the places a recipe names; rest: what
    the others compute in then."""
    if precision not in ("int8", "fp8"):
        return dict.fromkeys(places, precision)
    chosen = set(quantized)
    return {place: precision if place in chosen else rest for place in places}


def prove(plan: Iterable[PlannedLayer], asked: Mapping[Place, str]) -> tuple[Proven, ...]:
    """One row for each place, in the model's order: what its matrix kernels compute in.

    A layer without one of its own was fused (an attention, the head mix): then it is what goes into
    the fused kernels. Empty when the plan does not have it at all.
    """
    matrices: dict[Place, dict[str, None]] = {place: {} for place in asked}
    fused: dict[Place, dict[str, None]] = {place: {} for place in asked}
    for layer in plan:
        found = matrices if layer.kind.lower() in MATRIX_TYPES else fused
        kind = DATATYPES.get(layer.computes_in, layer.computes_in)
        for place in layer.places:
            if place in found:
                found[place][kind] = None
    return tuple(
        Proven(
            block=place.block,
            role=place.role,
            requested=wanted,
            obtained=tuple(matrices[place] or fused[place]),
        )
        for place, wanted in asked.items()
    )


def failures(rows: Iterable[Proven]) -> list[str]:
    """What is not as it was asked for, one sentence each."""
    wrong = []
    for row in rows:
        name, got = f"{row.block}:{row.role}", ", ".join(row.obtained) or "nothing"
        if row.role in DEPTHWISE and not EIGHT_BITS.isdisjoint(row.obtained):
            wrong.append(
                f"{name} is a depthwise convolution in {got}, padded to four times its channels"
            )
        elif not row.obtained:
            wrong.append(f"{name} was asked for in {row.requested} and is not in NVIDIA's plan")
        elif set(row.obtained) != {row.requested}:
            wrong.append(f"{name} was asked for in {row.requested}, NVIDIA planned {got}")
    return wrong


def enforce(rows: Iterable[Proven], what: str) -> None:
    """Raise `VerificationError` naming the first failures."""
    wrong = failures(rows)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise VerificationError(
            f"{what} does not have the precision that was asked for: "
            f"{'; '.join(wrong[:3])}{more}; no engine was written",
            hint="rest-deploy lint shows what the graph has missed",
        )
