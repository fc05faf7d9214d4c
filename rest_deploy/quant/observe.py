"""Stream images through the float graph and keep what scales are chosen from.

For every observed tensor: the exact largest magnitude (all of it and per channel), per-channel
means, and a histogram of magnitudes with one bin a bfloat16. Bins of relative width need no range
in advance: one pass, any order, any mix of sizes, and a memory that does not depend on the number
of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from rest_deploy.errors import InputError
from rest_deploy.quant.probe import Probe
from rest_deploy.quant.scales import BINS

if TYPE_CHECKING:
    import onnxruntime

Float32 = npt.NDArray[np.float32]

SAMPLING_STRIDE = 5
"""Every fifth value goes into the histogram (coprime to all channel counts, so that all channels
take part); maxima and means see every value."""


@dataclass
class Observation:
    """Running statistics of one tensor with channels on `axis`; updated in place by `observe`."""

    axis: int
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    channel_largest: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    values: int = 0

    @property
    def largest(self) -> float:
        return float(self.channel_largest.max()) if len(self.channel_largest) else 0.0

    @property
    def channel_mean(self) -> npt.NDArray[np.float64]:
        """Mean of each channel over everything seen."""
        return self.channel_sum / max(1, self.values // len(self.channel_sum))

    def add(self, array: Float32) -> None:
        """Take one batch in. Raises `InputError` for NaN or infinity."""
        rows = array.reshape(-1, array.shape[-1]) if self.axis in (-1, array.ndim - 1) else (
            np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])
        )  # fmt: skip
        high, low = rows.max(axis=0), rows.min(axis=0)
        largest = np.maximum(high, -low)
        if not np.isfinite(largest).all():
            raise InputError("a tensor has NaN or infinite values on the calibration images")
        if not len(self.channel_largest):
            self.channel_largest = np.zeros_like(largest)
            self.channel_sum = np.zeros(len(largest))
        self.channel_largest = np.maximum(self.channel_largest, largest)
        self.channel_sum += rows.sum(axis=0, dtype=np.float32)
        self.values += rows.size
        sample = np.ascontiguousarray(array.reshape(-1)[::SAMPLING_STRIDE])
        # The upper half of a float32 is a bfloat16; without its sign bit it numbers the bins.
        codes = (sample.view(np.uint32) >> np.uint32(16)) & np.uint32(0x7FFF)
        self.counts += np.bincount(codes.astype(np.intp), minlength=BINS)

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """What `restore` needs to go on; the histogram as its occupied bins."""
        occupied = np.flatnonzero(self.counts)
        return {
            "bins": occupied,
            "counts": self.counts[occupied],
            "channel_largest": self.channel_largest,
            "channel_sum": self.channel_sum,
            "values": np.array(self.values),
        }

    def restore(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        self.counts[np.asarray(state["bins"], np.int64)] = state["counts"]
        self.channel_largest = np.asarray(state["channel_largest"], np.float32)
        self.channel_sum = np.asarray(state["channel_sum"], np.float64)
        self.values = int(np.asarray(state["values"], np.int64))


Progress = Callable[[int], None]
"""Called with the number of images done so far."""

Batches = Callable[[int], Iterable[Float32]]
"""From an image on: (N, 3, H, W) float32 each."""


class Phase(Protocol):
    """Where the state of an interrupted observation is kept; see `resume`."""

    def restore(self, seen: Mapping[str, Observation], probes: Mapping[str, Probe]) -> int:
        """Put stored statistics in; returns the number of images they cover."""

    def offer(
        self, done: int, seen: Mapping[str, Observation], probes: Mapping[str, Probe]
    ) -> None:
        """Called after every batch: store it, if it is time."""


def observe(
    model: Path,
    tensors: dict[str, int],
    batches: Batches,
    probes: Mapping[str, Probe] | None = None,
    *,
    progress: Progress = lambda _done: None,
    phase: Phase | None = None,
    threads: int | None = None,
) -> dict[str, Observation]:
    """Run `batches` and observe `tensors` (name -> channel axis).

    model: an ONNX file. probes: updated in place, by tensor. Returns one observation per tensor.
    Raises `InputError` naming the first tensor with a non-finite value.
    """
    session = open_session(model, list(tensors), threads)
    observations = {name: Observation(axis) for name, axis in tensors.items()}
    probes = probes or {}
    names = list(tensors)
    done = phase.restore(observations, probes) if phase else 0
    for batch in batches(done):
        for name, array in zip(names, session.run(names, {"image": batch}), strict=True):
            try:
                observations[name].add(array)
            except InputError as error:
                raise InputError(f"{name}: {error.message}") from error
            if name in probes:
                probes[name].add(array)
        done += len(batch)
        if phase:
            phase.offer(done, observations, probes)
        progress(done)
    return observations


def open_session(
    model: Path, tensors: Sequence[str], threads: int | None = None
) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, with `tensors` as outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Its idle threads would spin on the cores that NumPy needs between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        with_outputs(model, tensors), options, providers=["CPUExecutionProvider"]
    )


def with_outputs(model: Path, tensors: Sequence[str]) -> bytes:
    """The serialized model with `tensors` as graph outputs instead of its own."""
    import onnx

    proto = onnx.load(model)
    own = {value.name: value for value in (*proto.graph.input, *proto.graph.output)}
    del proto.graph.output[:]
    for name in tensors:
        proto.graph.output.append(
            own.get(name) or onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    return bytes(proto.SerializeToString())


def largest_values(model: Path, images: Float32, batch: int = 2) -> dict[str, float]:
    """Largest magnitude of every float tensor of the graph; NaN stays NaN. images: (N, 3, H, W)."""
    import onnx_ir as ir

    names = [
        value.name or ""
        for node in ir.load(model).graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT
    ]
    session = open_session(model, names)
    largest = dict.fromkeys(names, 0.0)
    for start in range(0, len(images), batch):
        outputs = session.run(names, {"image": images[start : start + batch]})
        for name, array in zip(names, outputs, strict=True):
            largest[name] = float(np.maximum(largest[name], np.abs(array).max()))
    return largest
