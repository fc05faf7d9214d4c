from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rest_deploy.contracts import TensorSpec
from rest_deploy.errors import ArtifactError
from rest_deploy.preprocess import to_tensor
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.session import Session


@pytest.fixture(scope="module")
def classifier(exported_nano: Path) -> Classifier:
    return Classifier.open(exported_nano)


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)


def test_every_kind_of_source_gives_the_same(
    classifier: Classifier, pixels: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    image = Image.fromarray(pixels)
    path, buffer = tmp_path / "image.png", io.BytesIO()
    image.save(path)
    image.save(buffer, "png")
    expected = classifier.classify(pixels)
    for source in (path, str(path), buffer.getvalue(), image):
        assert classifier.classify(source) == expected


def test_top_k(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    best = classifier.classify(pixels, top=1000)
    probabilities = [prediction.probability for prediction in best]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert classifier.classify(pixels, top=3) == best[:3]
    labels = classifier.session.metadata.labels
    assert all(prediction.label == labels[prediction.index] for prediction in best)


def test_the_best_is_the_argmax(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    preprocessing = classifier.session.metadata.card.preprocessing
    logits = classifier.session.run(to_tensor(Image.fromarray(pixels), preprocessing)[None])
    assert classifier.classify(pixels, top=1)[0].index == int(logits.argmax())


def test_batches(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    assert classifier.classify_batch([]) == []
    together = classifier.classify_batch([pixels, pixels[::-1]])
    assert [p.index for p in together[1]] == [p.index for p in classifier.classify(pixels[::-1])]


class NanRunner:
    """An engine that answers NaN."""

    backend = "broken"
    inputs = (TensorSpec("image", "float32", ("batch", 3, "height", "width")),)
    outputs = (TensorSpec("logits", "float32", ("batch", 1000)),)

    def infer(self, feeds: object) -> dict[str, npt.NDArray[np.generic]]:
        assert feeds
        return {"logits": np.full((1, 1000), np.nan, np.float32)}

    def close(self) -> None:
        """Nothing to give back."""


def test_nan_is_an_error(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    good = classifier.session
    broken = Session(NanRunner(), good.metadata, good.path, None)
    with pytest.raises(ArtifactError, match="NaN or infinite class scores"):
        Classifier(broken).classify(pixels)
