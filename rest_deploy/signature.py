"""What a deployed graph takes and gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from rest_deploy.architecture import Architecture
from rest_deploy.errors import InputError
from rest_deploy.stored import Struct

OutputKind = Literal["logits", "probabilities", "embedding", "features"]
"""logits: (N, classes); probabilities: their softmax; embedding: (N, C), the pooled vector before
the head; features: the maps of the four stages, C2 to C5, each (N, C, H/stride, W/stride)."""

OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)

SCORES: tuple[OutputKind, ...] = ("logits", "probabilities")
"""What classes are read from, the first of them that there is."""

InputKind = Literal["float", "uint8"]
"""float: (N, 3, H, W) float32, normalized; uint8: (N, H, W, 3) RGB, normalized in the graph."""

STRIDES = (4, 8, 16, 32)
"""Of the maps c2 to c5: a cell stands for that many pixels each way, the last one for the rest."""


class Output(Struct, frozen=True):
    """One output of a graph.

    `name`: "logits", "probabilities", "embedding", "c2" to "c5". `channels`: classes, or C.
    `stride`: of a map (N, channels, ceil(H / stride), ceil(W / stride)); 0 for a vector (N,
    channels). `unit_length`: an embedding of L2 norm 1.
    """

    name: str
    kind: OutputKind
    channels: int
    stride: int = 0
    unit_length: bool = False


MAPS = ("c2", "c3", "c4", "c5")
"""Names of the stages' maps, before any norm: a classifier's weights have none for them; behind the
norms of a detector's backbone, whose weights have."""


def outputs_for(
    kinds: Sequence[OutputKind],
    architecture: Architecture,
    num_classes: int,
    *,
    unit_length: bool = False,
) -> tuple[Output, ...]:
    """The outputs of a graph that gives `kinds`, in this order; none: logits, or without a head
    the embedding.

    Raises `InputError` for a kind asked for twice, for classes of a model that has none, and for
    `unit_length` without an embedding.
    """
    asked = tuple(kinds) or (("logits",) if num_classes else ("embedding",))
    twice = [kind for kind, count in Counter(asked).items() if count > 1]
    if twice:
        raise InputError(f"--output {twice[0]} was given twice; expected each kind once")
    if unit_length and "embedding" not in asked:
        raise InputError(
            f"--unit-length is of an embedding; the outputs are {', '.join(asked)}",
            hint="--output embedding --unit-length",
        )
    found: list[Output] = []
    for kind in asked:
        if kind in ("logits", "probabilities"):
            if not num_classes:
                raise InputError(
                    f"--output {kind} needs a head; this model has none",
                    hint="--output embedding or --output features",
                )
            found.append(Output(name=kind, kind=kind, channels=num_classes))
        elif kind == "embedding":
            width = architecture.dims[3]
            found.append(Output(name=kind, kind=kind, channels=width, unit_length=unit_length))
        else:
            maps = zip(MAPS, architecture.dims, STRIDES, strict=True)
            found += [Output(name=n, kind=kind, channels=c, stride=s) for n, c, s in maps]
    return tuple(found)


def kinds_of(outputs: Sequence[Output]) -> tuple[OutputKind, ...]:
    """The kinds that were asked for, each once, in order."""
    return tuple(dict.fromkeys(output.kind for output in outputs))
