"""Images -> labels: decoding, preprocessing, engine, top-k."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError
from rest_deploy.preprocess import load_image, to_input
from rest_deploy.runtime.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    from rest_deploy.runtime.specialize import ShapeLimits
    from rest_deploy.runtime.tensorrt import GpuOptions


class Prediction(Struct, frozen=True):
    """One class for one image; `probability`: the softmax of the logits, or the model's own."""

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
        """Raises `ArtifactError` for a model that gives neither logits nor probabilities."""
        gives = session.metadata.gives
        scores = [output for output in gives if output.kind in ("logits", "probabilities")]
        if not scores:
            given = ", ".join(output.name for output in gives)
            raise ArtifactError(
                f"{session.path} gives no classes, but {given}",
                hint="Session.run_all returns what it gives; rest-deploy export --output logits of "
                "a model with a head makes one that classifies",
            )
        self.session = session
        self._scores = scores[0]

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
        selftest: bool = True,
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
                selftest=selftest,
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
        kind = self.session.metadata.input_kind
        tensors = [to_input(load_image(image), kind, preprocessing) for image in images]
        if not tensors:
            return []
        scores = self.session.run_all(np.stack(tensors))[self._scores.name]
        return [self._best(row, top) for row in scores]

    def _best(self, scores: npt.NDArray[np.float32], top: int) -> list[Prediction]:
        labels = self.session.metadata.labels
        try:
            if self._scores.kind == "probabilities":
                return most_probable(scores.astype(np.float64), labels, top)
            return best(scores, labels, top)
        except ArtifactError as error:
            raise ArtifactError(f"{self.session.path}: {error.message}", hint=error.hint) from error


def best(logits: npt.NDArray[np.float32], labels: Sequence[str], top: int) -> list[Prediction]:
    """The `top` most probable classes of one image, best first. logits: (classes,).

    Raises `ArtifactError` for logits that are not finite.
    """
    _check(logits)
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return most_probable(shifted / shifted.sum(), labels, top)


def most_probable(
    probabilities: npt.NDArray[np.float64], labels: Sequence[str], top: int
) -> list[Prediction]:
    """The same of (classes,) probabilities, which a model may give by itself."""
    _check(probabilities)
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        Prediction(index=int(i), label=labels[i], probability=float(probabilities[i]))
        for i in order
    ]


def _check(scores: npt.NDArray[np.floating]) -> None:
    if not np.isfinite(scores).all():
        raise ArtifactError(
            "the engine returned NaN or infinite class scores",
            hint="rest-deploy verify shows where it departs from the reference",
        )
