from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from rest_deploy.cards import load_card
from rest_deploy.embed.answers import Form, best
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.session import Session

LABELS = tuple(f"class {index}" for index in range(7))


def test_best_is_the_classifiers() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (20, 7)).astype(np.float32)
    logits[0] = 1.0  # all alike
    logits[1, 3] = logits[1, 5] = 90.0
    metadata = SimpleNamespace(num_classes=7, labels=LABELS, card=load_card("nano"))
    session = SimpleNamespace(metadata=metadata, path="x", run=lambda _images: logits)
    images = [np.zeros((32, 32, 3), np.uint8)] * len(logits)
    answers = Classifier(cast(Session, session)).classify_batch(images, 4)
    indices, probabilities = best(logits, 4)
    for row, expected in enumerate(answers):
        assert [found.index for found in expected] == indices[row].tolist()
        wanted = np.array([found.probability for found in expected], np.float32)
        assert np.array_equal(wanted, probabilities[row])


@pytest.mark.parametrize("top", [1, 5, 7, 100])
def test_labels(top: int) -> None:
    form = Form(LABELS, 7, top, logits=True)
    logits = np.arange(14, dtype=np.float32).reshape(2, 7)
    found = form.rows(("a", "b"), logits).to_pylist()
    kept = min(top, 7)
    assert found[0]["id"] == "a"
    assert found[0]["index"] == list(range(6, 6 - kept, -1))
    assert found[1]["label"] == [f"class {index}" for index in found[1]["index"]]
    assert found[1]["logits"] == logits[1].tolist()
    assert form.schema().names == ["id", "index", "label", "probability", "logits"]
    assert Form(LABELS, 7, top).schema().names == ["id", "index", "label", "probability"]


def test_embeddings() -> None:
    form = Form((), 3)
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert form.rows(("a", "b"), values).to_pylist() == [
        {"id": "a", "embedding": [1, 2, 3]},
        {"id": "b", "embedding": [4, 5, 6]},
    ]
