"""What an engine says of a batch -> columns of a Parquet file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """labels: of the classes; () for an engine that returns embeddings. width: of what it returns.
    top: classes kept of each image. logits: whether all of them are kept too."""

    labels: tuple[str, ...]
    width: int
    top: int = 5
    logits: bool = False

    @property
    def kept(self) -> int:
        return min(self.top, len(self.labels))

    def schema(self) -> pyarrow.Schema:
        """Of the answers, without metadata."""
        import pyarrow

        floats = pyarrow.list_(pyarrow.float32(), self.width)
        if not self.labels:
            return pyarrow.schema([("id", pyarrow.string()), ("embedding", floats)])
        kept = self.kept
        fields = [
            ("id", pyarrow.string()),
            ("index", pyarrow.list_(pyarrow.int32(), kept)),
            ("label", pyarrow.list_(pyarrow.string(), kept)),
            ("probability", pyarrow.list_(pyarrow.float32(), kept)),
        ]
        return pyarrow.schema([*fields, ("logits", floats)] if self.logits else fields)

    def rows(self, ids: tuple[str, ...], answers: Float32) -> pyarrow.RecordBatch:
        """answers: (N, width), finite, of the N `ids`."""
        import pyarrow

        columns: list[pyarrow.Array] = [pyarrow.array(ids, pyarrow.string())]
        if not self.labels:
            columns.append(_lists(answers))
        else:
            indices, probabilities = best(answers, self.kept)
            names = pyarrow.array(self.labels, pyarrow.string())
            chosen = names.take(pyarrow.array(indices.ravel()))
            columns += [
                _lists(indices),
                pyarrow.FixedSizeListArray.from_arrays(chosen, self.kept),
                _lists(probabilities),
            ]
            if self.logits:
                columns.append(_lists(answers))
        return pyarrow.RecordBatch.from_arrays(columns, schema=self.schema())


def bad_schema() -> pyarrow.Schema:
    """Of the images without an answer: id and reason."""
    import pyarrow

    return pyarrow.schema([("id", pyarrow.string()), ("reason", pyarrow.string())])


def best(logits: Float32, top: int) -> tuple[npt.NDArray[np.int32], Float32]:
    """(N, classes) -> indices and probabilities (N, top) of the most probable classes, best first;
    of equals the lower index, as `runtime.classifier` has it."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    chosen = np.take_along_axis(probabilities, order, axis=1)
    return order.astype(np.int32), chosen.astype(np.float32)


def _lists(values: npt.NDArray[np.generic]) -> pyarrow.Array:
    import pyarrow

    flat = pyarrow.array(np.ascontiguousarray(values).ravel())
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
