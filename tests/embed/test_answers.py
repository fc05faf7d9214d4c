from __future__ import annotations

import numpy as np
import pytest

from rest_deploy.embed.answers import Form, best
from rest_deploy.runtime import classifier
from rest_deploy.signature import Output

LABELS = tuple(f"class {index}" for index in range(7))
LOGITS = Output(name="logits", kind="logits", channels=7)
PROBABILITIES = Output(name="probabilities", kind="probabilities", channels=7)
EMBEDDING = Output(name="embedding", kind="embedding", channels=3)


def test_best_is_the_classifiers() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (20, 7)).astype(np.float32)
    logits[0] = 1.0  # all alike
    logits[1, 3] = logits[1, 5] = 90.0
    indices, probabilities = best(logits, 4)
    for row, values in enumerate(logits):
        expected = classifier.best(values, LABELS, 4)
        assert [found.index for found in expected] == indices[row].tolist()
        wanted = np.array([found.probability for found in expected], np.float32)
        assert np.array_equal(wanted, probabilities[row])


@pytest.mark.parametrize("top", [1, 5, 7, 100])
def test_labels(top: int) -> None:
    form = Form(LABELS, LOGITS, top=top, logits=True)
    logits = np.arange(14, dtype=np.float32).reshape(2, 7)
    found = form.rows(("a", "b"), {"logits": logits, "embedding": logits}).to_pylist()
    kept = min(top, 7)
    assert found[0]["id"] == "a"
    assert found[0]["index"] == list(range(6, 6 - kept, -1))
    assert found[1]["label"] == [f"class {index}" for index in found[1]["index"]]
    assert found[1]["logits"] == logits[1].tolist()
    assert form.schema().names == ["id", "index", "label", "probability", "logits"]
    names = Form(LABELS, LOGITS, top=top).schema().names
    assert names == ["id", "index", "label", "probability"]


def test_probabilities_are_told_as_they_are() -> None:
    shares = np.array([[0.125, 0.5, 0.125, 0.25, 0, 0, 0]], np.float32)
    (row,) = Form(LABELS, PROBABILITIES, top=2).rows(("a",), {"probabilities": shares}).to_pylist()
    assert row["index"] == [1, 3]
    assert row["probability"] == [0.5, 0.25]


def test_embeddings() -> None:
    form = Form(embedding=EMBEDDING)
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert form.rows(("a", "b"), {"embedding": values}).to_pylist() == [
        {"id": "a", "embedding": [1, 2, 3]},
        {"id": "b", "embedding": [4, 5, 6]},
    ]


def test_labels_and_embeddings() -> None:
    form = Form(LABELS, LOGITS, EMBEDDING, top=1)
    assert form.outputs == (LOGITS, EMBEDDING)
    answers = {"logits": np.eye(7, dtype=np.float32)[:1], "embedding": np.ones((1, 3), np.float32)}
    (row,) = form.rows(("a",), answers).to_pylist()
    assert list(row) == ["id", "index", "label", "probability", "embedding"]
    assert (row["label"], row["embedding"]) == (["class 0"], [1, 1, 1])
