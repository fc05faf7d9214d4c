"""What NVIDIA's builder decided, layer by layer, read from its verbose build log.

The engine inspector needs a GPU; the log of a build with DETAILED profiling verbosity has the same
records on any machine. A record is one line:

    Name: …, LayerType: gemm, Inputs: [ { …, Datatype: Int8, … } ], Constants: […], Outputs: […],
    TacticName: …, Metadata: [ONNX Layer: stage1.0.attn.proj.MatMul][ONNX Layer: …]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rest_deploy.graph.roles import Place

MATRIX_TYPES = frozenset({"gemm", "conv", "convolution", "fc", "correlation", "runtime_fusion"})
"""LayerType of what multiplies matrices; runtime_fusion: a convolution and what follows it."""


@dataclass(frozen=True)
class PlannedLayer:
    """One kernel of the plan. `inputs`, `constants`, `outputs`: datatypes as NVIDIA names them
    (Int8, Half, Float, BFloat16, FP8); `onnx_layers`: names of the nodes it was made of."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx_layers: tuple[str, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """Of the weight layers and attention products among its nodes, in their order."""
        from rest_deploy.graph.roles import place

        found = (place(name) for name in self.onnx_layers)
        return tuple(where for where in found if where is not None)

    @property
    def computes_in(self) -> str:
        """Datatype of the first input, which is what a matrix kernel multiplies."""
        return self.inputs[0] if self.inputs else ""


def read_plan(log: Iterable[str]) -> list[PlannedLayer]:
    """Records of the log, the last of each name. log: messages, of one line or of many."""
    layers: dict[str, PlannedLayer] = {}
    for message in log:
        for line in message.splitlines():
            layer = _record(line)
            if layer is not None:
                layers[layer.name] = layer
    return list(layers.values())


def weight_layers(plan: Iterable[PlannedLayer]) -> dict[str, Counter[str]]:
    """Role -> datatype -> number of kernels, for everything that multiplies matrices."""
    roles: dict[str, Counter[str]] = {}
    for layer in plan:
        if layer.kind.lower() not in MATRIX_TYPES:
            continue
        for role in {where.role for where in layer.places}:
            roles.setdefault(role, Counter())[layer.computes_in] += 1
    return roles


def _record(line: str) -> PlannedLayer | None:
    match = re.search(r"Name: (\S+), LayerType: (\w+), (.*)", line)
    if match is None:
        return None
    name, kind, rest = match.groups()
    rest, _, metadata = rest.partition("Metadata: ")
    before, _, outputs = rest.partition("Outputs: [")
    inputs, _, constants = before.partition("Constants: [")
    return PlannedLayer(
        name=name,
        kind=kind,
        inputs=_datatypes(inputs),
        constants=_datatypes(constants),
        outputs=_datatypes(outputs),
        onnx_layers=tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata)),
    )


def _datatypes(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"Datatype: (\w+)", text))
