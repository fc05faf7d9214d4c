"""What a deployed graph takes and gives."""

from __future__ import annotations

from typing import Literal, get_args

from rest_deploy.stored import Struct

OutputKind = Literal["logits", "probabilities", "embedding", "features"]
"""logits: (N, classes); probabilities: their softmax; embedding: (N, C), the pooled vector before
the head; features: the maps of the four stages, C2 to C5, each (N, C, H/stride, W/stride)."""

OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)

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
