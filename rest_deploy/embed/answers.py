"""What an engine says of a batch -> columns of a Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.signature import Output

if TYPE_CHECKING:
    import pyarrow

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """scores: logits or probabilities that labels are read from; embedding: a vector of each image;
    None where they are not kept. labels: of the classes. top: classes kept of each image. logits:
    whether all of them are kept too."""

    labels: tuple[str, ...] = ()
    scores: Output | None = None
    embedding: Output | None = None
    top: int = 5
    logits: bool = False

    @property
    def kept(self) -> int:
        return min(self.top, len(self.labels))

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Of the engine, those that rows are made of."""
        return tuple(one for one in (self.scores, self.embedding) if one is not None)

    def schema(self) -> pyarrow.Schema:
        """Of the answers, without metadata."""
        import pyarrow

        def floats(output: Output) -> pyarrow.DataType:
            return pyarrow.list_(pyarrow.float32(), output.channels)

        fields = [("id", pyarrow.string())]
        if self.scores is not None:
            kept = self.kept
            fields += [
                ("index", pyarrow.list_(pyarrow.int32(), kept)),
                ("label", pyarrow.list_(pyarrow.string(), kept)),
                ("probability", pyarrow.list_(pyarrow.float32(), kept)),
            ]
            fields += [("logits", floats(self.scores))] if self.logits else []
        if self.embedding is not None:
            fields.append(("embedding", floats(self.embedding)))
        return pyarrow.schema(fields)

    def rows(self, ids: tuple[str, ...], answers: Mapping[str, Float32]) -> pyarrow.RecordBatch:
        """answers: by output name, (N, channels), finite, of the N `ids`."""
        import pyarrow

        columns: list[pyarrow.Array] = [pyarrow.array(ids, pyarrow.string())]
        if self.scores is not None:
            scores = answers[self.scores.name]
            indices, probabilities = best(scores, self.kept, softmax=self.scores.kind == "logits")
            names = pyarrow.array(self.labels, pyarrow.string())
            chosen = names.take(pyarrow.array(indices.ravel()))
            columns += [
                _lists(indices),
                pyarrow.FixedSizeListArray.from_arrays(chosen, self.kept),
                _lists(probabilities),
            ]
            columns += [_lists(scores)] if self.logits else []
        if self.embedding is not None:
            columns.append(_lists(answers[self.embedding.name]))
        return pyarrow.RecordBatch.from_arrays(columns, schema=self.schema())


def bad_schema() -> pyarrow.Schema:
    """Of the images without an answer: id and reason."""
    import pyarrow

    return pyarrow.schema([("id", pyarrow.string()), ("reason", pyarrow.string())])


def best(
    scores: Float32, top: int, *, softmax: bool = True
) -> tuple[npt.NDArray[np.int32], Float32]:
    """(N, classes) -> indices and probabilities (N, top) of the most probable classes, best first;
    of equals the lower index, as `runtime.classifier` has it. softmax: of logits; probabilities are
    taken as they are."""
    probabilities = scores.astype(np.float64)
    if softmax:
        shifted = np.exp(probabilities - probabilities.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    chosen = np.take_along_axis(probabilities, order, axis=1)
    return order.astype(np.int32), chosen.astype(np.float32)


def _lists(values: npt.NDArray[np.generic]) -> pyarrow.Array:
    import pyarrow

    flat = pyarrow.array(np.ascontiguousarray(values).ravel())
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
