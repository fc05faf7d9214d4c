"""Images -> labels: decoding, preprocessing, engine, top-k."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError
from rest_deploy.preprocess import load_image, to_tensor
from rest_deploy.runtime.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    from rest_deploy.runtime.specialize import ShapeLimits
    from rest_deploy.runtime.tensorrt import GpuOptions


class Prediction(Struct, frozen=True):
    """One class for one image; `probability` is the softmax of the logits."""

    index: int
    label: str
    probability: float


class Classifier:
    """A session with the preprocessing and the labels the model was exported with.

    >>> classifier = rest_deploy.Classifier.open("build/rest_nano.onnx")
    >>> [found.label for found in classifier.classify("astronaut.png", top=1)]
    ['astronaut']
    """

    def __init__(self, session: Session) -> None:
        if session.metadata.num_classes == 0:
            raise ArtifactError(f"{session.path} has no classifier head: it returns embeddings")
        self.session = session

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
        specialize: ShapeLimits | None = None,
        gpu: GpuOptions | None = None,
        trust: str | Path | None = None,
    ) -> Classifier:
        """See `Session.open`."""
        return cls(
            Session.open(
                path,
                backend=backend,
                provider=provider,
                threads=threads,
                specialize=specialize,
                gpu=gpu,
                trust=trust,
            )
        )

    def classify(
        self, image: str | Path | bytes | Image | npt.NDArray[np.uint8], top: int = 5
    ) -> list[Prediction]:
        """The `top` most probable classes, best first.

        image: path, encoded bytes, PIL image or (H, W, 3) uint8 RGB. Raises `ImageError`.
        """
        return self.classify_batch([image], top)[0]

    def classify_batch(
        self,
        images: Iterable[str | Path | bytes | Image | npt.NDArray[np.uint8]],
        top: int = 5,
    ) -> list[list[Prediction]]:
        """`classify` for several images in one engine call."""
        preprocessing = self.session.metadata.card.preprocessing
        tensors = [to_tensor(load_image(image), preprocessing) for image in images]
        if not tensors:
            return []
        logits = self.session.run(np.stack(tensors))
        return [self._best(row, top) for row in logits]

    def _best(self, logits: npt.NDArray[np.float32], top: int) -> list[Prediction]:
        try:
            return best(logits, self.session.metadata.labels, top)
        except ArtifactError as error:
            raise ArtifactError(f"{self.session.path}: {error.message}", hint=error.hint) from error


def best(logits: npt.NDArray[np.float32], labels: Sequence[str], top: int) -> list[Prediction]:
    """The `top` most probable classes of one image, best first. logits: (classes,).

    Raises `ArtifactError` for logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise ArtifactError(
            "the engine returned NaN or infinite logits",
            hint="rest-deploy verify shows where it departs from the reference",
        )
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        Prediction(index=int(i), label=labels[i], probability=float(probabilities[i]))
        for i in order
    ]
