"""Images -> embeddings: the vector before the head, by the classifier's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from rest_deploy.errors import ArtifactError
from rest_deploy.preprocess import load_image, to_input
from rest_deploy.runtime.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

Float32 = npt.NDArray[np.float32]


class Embedder:
    """A session of a model that gives an embedding, alone or beside other outputs.

    >>> Embedder.open("build/rest_lite.unit-embedding.onnx").embed("cat.jpg") @ other
    """

    def __init__(self, session: Session) -> None:
        """Raises `ArtifactError` for a model that gives no embedding."""
        found = [output for output in session.metadata.gives if output.kind == "embedding"]
        if not found:
            given = ", ".join(output.name for output in session.metadata.gives)
            raise ArtifactError(
                f"{session.path} gives no embedding, but {given}",
                hint="rest-deploy export --output embedding, or --num-classes 0 without a head",
            )
        self.session = session
        self.output = found[0]

    @classmethod
    def open(cls, path: str | Path, **options: Any) -> Self:
        """options: see `Session.open`."""
        return cls(Session.open(path, **options))

    def embed(self, image: str | Path | bytes | Image | npt.NDArray[np.uint8]) -> Float32:
        """The vector of one image, (C,). image: path, encoded bytes, PIL image or (H, W, 3) uint8
        RGB. Raises `ImageError`."""
        vector: Float32 = self.embed_batch([image])[0]
        return vector

    def embed_batch(
        self, images: Iterable[str | Path | bytes | Image | npt.NDArray[np.uint8]]
    ) -> Float32:
        """`embed` for several images in one engine call: (N, C). Raises `ArtifactError` for
        vectors that are not finite."""
        metadata = self.session.metadata
        preprocessing = metadata.card.preprocessing
        tensors = [to_input(load_image(i), metadata.input_kind, preprocessing) for i in images]
        if not tensors:
            return np.empty((0, self.output.channels), np.float32)
        vectors = self.session.run_all(np.stack(tensors))[self.output.name]
        if not np.isfinite(vectors).all():
            raise ArtifactError(
                f"{self.session.path} returned embeddings with NaN or infinity",
                hint="rest-deploy verify shows where it departs from the reference",
            )
        return vectors
