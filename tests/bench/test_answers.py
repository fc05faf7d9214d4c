from __future__ import annotations

import numpy as np
import pytest

from rest_deploy.bench.answers import Answers, WrongAnswer, batches
from tests.doubles.engines import Float32


def logits(seed: int, batch: int = 2, classes: int = 5) -> Float32:
    return np.random.default_rng(seed).standard_normal((batch, classes), dtype=np.float32)


def known(count: int = 2) -> Answers:
    answers = Answers(inputs=count, batch=2)
    for index in range(count):
        answers.first(index, logits(index))
    return answers


def test_an_honest_engine() -> None:
    answers = known()
    answers.depend_on_images()
    for index in (0, 1, 0):
        answers.check(index, logits(index))
        answers.check(index, logits(index) * np.float32(1 + 1e-5))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan(value: float) -> None:
    bad = logits(0)
    bad[1, 3] = value
    with pytest.raises(WrongAnswer, match="answers NaN or infinity to input 0, which it answered"):
        known().check(0, bad)
    with pytest.raises(WrongAnswer, match="answers NaN or infinity to input 0"):
        Answers(inputs=2, batch=2).first(0, bad)


def test_another_answer_than_at_the_start() -> None:
    with pytest.raises(WrongAnswer, match=r"otherwise than at its start: relative distance \d"):
        known().check(0, logits(1))
    almost = logits(0)
    almost[0, 0] += 0.02
    with pytest.raises(WrongAnswer, match="expected at most 1e-03"):
        known().check(0, almost)


def test_shapes() -> None:
    with pytest.raises(WrongAnswer, match=r"shape \(1, 5\), at its start \(2, 5\)"):
        known().check(0, logits(0)[:1])
    answers = Answers(inputs=1, batch=2, classes=7)
    with pytest.raises(WrongAnswer, match="answers 5 classes; expected 7"):
        answers.first(0, logits(0))
    with pytest.raises(WrongAnswer, match=r"shape \(2, 5\) to 3 images"):
        Answers(inputs=1, batch=3).first(0, logits(0))


def test_constant() -> None:
    answers = Answers(inputs=2, batch=2)
    for index in range(2):
        answers.first(index, np.tile(logits(0)[:1], (2, 1)))
    with pytest.raises(WrongAnswer, match="the same to 4 different images"):
        answers.depend_on_images()


def test_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="no first answer"):
        Answers(inputs=2, batch=2).check(1, logits(0))


def test_batches() -> None:
    images = np.arange(6 * 3 * 4 * 4, dtype=np.float32).reshape(6, 3, 4, 4)
    parts = batches(images, 2)
    assert [part.shape for part in parts] == [(2, 3, 4, 4)] * 3
    assert np.array_equal(np.concatenate(parts), images)
