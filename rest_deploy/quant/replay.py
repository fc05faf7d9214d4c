"""One pass over the calibration images through a graph on ONNX Runtime's CPU provider, with inner
tensors as its outputs: progress, interruption and going on are the same whatever is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from rest_deploy.artifact import METADATA_KEY, parse_metadata
from rest_deploy.errors import InvariantError
from rest_deploy.preprocess import pixels_of

if TYPE_CHECKING:
    import onnxruntime

Float32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.generic]]

Progress = Callable[[int], None]
"""Called with the number of images done so far."""

Batches = Callable[[int], Iterable[Float32]]
"""From an image on: (N, 3, H, W) float32 each, normalized, whatever the graph takes."""


class Running(Protocol):
    """Statistics that grow with every batch and can be kept on disk."""

    def state(self) -> Arrays:
        """What `restore` needs to go on."""

    def restore(self, state: Arrays) -> None: ...


class Phase(Protocol):
    """Where the state of an interrupted pass is kept; see `resume`."""

    def restore(self, items: Mapping[str, Running]) -> int:
        """Put stored statistics in; returns the number of images they cover."""

    def offer(self, done: int, items: Mapping[str, Running]) -> None:
        """Called after every batch: store it, if it is time."""


def replay(
    model: ir.Model,
    batches: Batches,
    take: Callable[[Sequence[npt.NDArray[np.generic]]], None],
    items: Mapping[str, Running],
    progress: Progress = lambda _done: None,
    phase: Phase | None = None,
) -> None:
    """Hand `model`'s outputs for each batch to `take`, which updates `items`.

    Raises `ImageError` where the graph takes pixels and a batch was made of none.
    """
    session = open_session(model)
    as_taken = _feeding(model)
    done = phase.restore(items) if phase else 0
    for batch in batches(done):
        take(session.run(None, {"image": as_taken(batch)}))
        done += len(batch)
        if phase:
            phase.offer(done, items)
        progress(done)


def _feeding(model: ir.Model) -> Callable[[Float32], npt.NDArray[np.generic]]:
    """Normalized images -> what the graph takes. How it normalizes pixels is in its metadata."""
    if model.graph.inputs[0].dtype != ir.DataType.UINT8:
        return lambda batch: batch
    metadata = parse_metadata(model.metadata_props.get(METADATA_KEY), Path("the graph"))
    return lambda batch: pixels_of(batch, metadata.card.preprocessing)


def with_outputs(model: ir.Model, tensors: Iterable[str]) -> ir.Model:
    """A copy of `model` with `tensors` as its outputs; what they do not need is not computed."""
    twin = ir.from_proto(ir.to_proto(model))
    values = named_values(twin.graph)
    twin.graph.outputs.clear()
    for name in tensors:
        if name not in values:
            raise InvariantError(f"the graph has no tensor {name}")
        twin.graph.outputs.append(values[name])
    # ONNX Runtime would compute what nothing reads.
    common.RemoveUnusedNodesPass()(twin)
    return twin


def named_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Inputs and results of nodes by name."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return {value.name or "": value for value in values}


def open_session(model: ir.Model) -> onnxruntime.InferenceSession:
    """`model` on ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Its idle threads would spin on the cores that decode the next batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
