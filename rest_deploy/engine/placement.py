"""ONNX Runtime's profile: where each node ran, and for how long.

Where: the proof that the provider asked for did the work.

A session whose provider takes only some nodes runs the rest on the CPU without a word. Its
profiler tells, node by node.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rest_deploy.errors import VerificationError

NAMED = 5
"""Layers named in an error."""

KERNEL = "_kernel_time"
"""Ends the name of the one event of a node that carries its provider."""


@dataclass(frozen=True)
class Ran:
    """One node: its name after ONNX Runtime's optimizer, operator, provider (ONNX Runtime's)."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True)
class Placement:
    """nodes: provider (ONNX Runtime's name) -> how many it ran. elsewhere: "stage1.0:mlp (MatMul on
    CPUExecutionProvider)", matrix layers that another provider than the one asked for ran."""

    provider: str
    nodes: dict[str, int]
    elsewhere: tuple[str, ...]


def read_times(text: str, runs: int) -> list[list[tuple[str, float]]]:
    """(name, ms) of every node in the order of execution, for each of `runs` runs.

    Raises `VerificationError` when the profile is none or holds another number of runs.
    """
    try:
        times = [
            (event["name"].removesuffix(KERNEL), float(event["dur"]) / 1e3)
            for event in json.loads(text)
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            f"ONNX Runtime's profile cannot be read ({type(error).__name__}: {error}): nothing "
            "tells where the time went"
        ) from error
    each, rest = divmod(len(times), runs)
    if rest or not each:
        raise VerificationError(
            f"ONNX Runtime's profile has {len(times)} nodes, which are not {runs} runs of one graph"
        )
    return [times[start : start + each] for start in range(0, len(times), each)]


def read_profile(text: str) -> tuple[Ran, ...]:
    """Of a profile that ONNX Runtime wrote, in Chrome's trace format.

    Raises `VerificationError` when it is not one, or tells of no node.
    """
    try:
        events: list[dict[str, Any]] = json.loads(text)
        ran = tuple(
            Ran(event["name"].removesuffix(KERNEL), args["op_name"], args["provider"])
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL)
            for args in (event["args"],)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            f"ONNX Runtime's profile cannot be read ({type(error).__name__}: {error}), so nothing "
            "proves which provider ran"
        ) from error
    if not ran:
        raise VerificationError("ONNX Runtime's profile names no node: nothing proves where it ran")
    return ran


def placed(
    ran: Iterable[Ran], provider: str, matrices: frozenset[str], layer: Callable[[str], str]
) -> Placement:
    """provider: ONNX Runtime's name of the one asked for. matrices: operators that are matrix
    layers. layer: name of a node -> of the layer it was made from.

    A provider that compiles runs its nodes as one of its own: a matrix layer that the profile still
    names was not taken.
    """
    found = tuple(ran)
    elsewhere = [
        f"{layer(node.name)} ({node.operator} on {node.provider})"
        for node in found
        if node.provider != provider and node.operator in matrices
    ]
    counts = Counter(node.provider for node in found)
    return Placement(provider, dict(counts), tuple(dict.fromkeys(elsewhere)))


def enforce(found: Placement, what: str) -> None:
    """Raise `VerificationError` naming layers that ran elsewhere, or when none ran where asked."""
    hint = "another precision or --provider; rest-deploy doctor shows which are here"
    if not found.nodes.get(found.provider):
        others = ", ".join(f"{count} on {name}" for name, count in found.nodes.items())
        raise VerificationError(
            f"{what} did not run on {found.provider} at all: {others} nodes; nothing was written",
            hint=hint,
        )
    if found.elsewhere:
        more = len(found.elsewhere) - NAMED
        raise VerificationError(
            f"{found.provider} was asked for and left {len(found.elsewhere)} matrix layers of "
            f"{what} to another provider: {'; '.join(found.elsewhere[:NAMED])}"
            f"{f' and {more} more' if more > 0 else ''}; nothing was written",
            hint=hint,
        )
