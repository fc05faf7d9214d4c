"""What needs every value of a tensor: its distribution, and how a layer's inputs move together.

The histogram of magnitudes has one bin a bfloat16. Bins of relative width need no range in advance:
one pass, any order, any mix of sizes, and a memory that does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.errors import InputError
from rest_deploy.quant.probe import Probe
from rest_deploy.quant.replay import Arrays, Batches, Phase, Progress, Running, replay, with_outputs
from rest_deploy.quant.scales import BINS

Float32 = npt.NDArray[np.float32]

SAMPLING_STRIDE = 5
"""Every fifth value goes into the histogram (coprime to all channel counts, so that all channels
take part); the largest is of all values."""


@dataclass
class Histogram:
    """Running distribution of one tensor's magnitudes; see `scales.bin_values`."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    largest: float = 0.0

    def add(self, array: Float32) -> None:
        """Take one batch in. Raises `InputError` for NaN or infinity."""
        largest = max(float(array.max()), -float(array.min()))
        if not np.isfinite(largest):
            raise InputError("the tensor has NaN or infinite values on these images")
        self.largest = max(self.largest, largest)
        sample = np.ascontiguousarray(array.reshape(-1)[::SAMPLING_STRIDE])
        # The upper half of a float32 is a bfloat16; without its sign bit it numbers the bins.
        codes = (sample.view(np.uint32) >> np.uint32(16)) & np.uint32(0x7FFF)
        self.counts += np.bincount(codes.astype(np.intp), minlength=BINS)

    def state(self) -> Arrays:
        """What `restore` needs to go on; only occupied bins."""
        occupied = np.flatnonzero(self.counts)
        return {
            "bins": occupied,
            "counts": self.counts[occupied],
            "largest": np.array(self.largest),
        }

    def restore(self, state: Arrays) -> None:
        self.counts[np.asarray(state["bins"], np.int64)] = state["counts"]
        self.largest = float(np.asarray(state["largest"], np.float64))


def observe(
    model: ir.Model,
    tensors: Iterable[str],
    batches: Batches,
    probes: Mapping[str, Probe] | None = None,
    *,
    progress: Progress = lambda _done: None,
    phase: Phase | None = None,
) -> dict[str, Histogram]:
    """Run `batches` through `model` and collect the histograms of `tensors`.

    probes: updated in place, by tensor. What neither needs is not computed.
    Raises `InputError` naming the first tensor with a non-finite value.
    """
    histograms = {name: Histogram() for name in tensors}
    probes = probes or {}
    names = list(dict.fromkeys((*histograms, *probes)))

    def take(outputs: Sequence[npt.NDArray[np.generic]]) -> None:
        for name, output in zip(names, outputs, strict=True):
            array = output.astype(np.float32, copy=False)
            try:
                if name in histograms:
                    histograms[name].add(array)
            except InputError as error:
                raise InputError(f"{name}: {error.message}") from error
            if name in probes:
                probes[name].add(array)

    items: dict[str, Running] = {f"histogram/{name}": h for name, h in histograms.items()}
    items |= {f"probe/{name}": probe for name, probe in probes.items()}
    replay(with_outputs(model, names), batches, take, items, progress, phase)
    return histograms
