"""What is remembered is the reference's own answer, to nothing else than what was asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

import torch

from rest_deploy.cards import load_card
from rest_deploy.model.reference import Reference
from rest_deploy.model.rest import ResT
from rest_deploy.signature import outputs_for
from tests import answers

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A batch size for each time that the reference itself was asked."""
    counted: list[int] = []

    def ask(self: Reference, images: npt.NDArray[np.float32]) -> answers.Answers:
        counted.append(len(images))
        with torch.inference_mode():
            return {"logits": self._module(torch.from_numpy(images).to(torch.float64)).numpy()}

    monkeypatch.setattr(Reference, "all", answers.remembering(ask))
    return counted


def nano() -> ResT:
    torch.manual_seed(0)
    return ResT(load_card("nano").architecture, 10).eval()


def test_the_same_question(asked: list[int]) -> None:
    first = Reference(nano())(IMAGES)
    again = Reference(nano())(IMAGES.copy())
    assert np.array_equal(first, again)
    assert asked == [2]
    first[:] = 0
    assert np.array_equal(Reference(nano())(IMAGES), again), "nobody changes what others get"


def test_other_questions(asked: list[int]) -> None:
    expected = Reference(nano())(IMAGES)
    assert len(Reference(nano())(IMAGES[:1])) == 1
    moved = IMAGES.copy()
    moved[1, 2, 31, 31] += 1
    assert not np.array_equal(expected, Reference(nano())(moved))
    other = nano()
    with torch.no_grad():
        next(other.head.parameters()).add_(1e-9)
    assert not np.array_equal(expected, Reference(other)(IMAGES))
    assert len(asked) == 4


def test_another_form_of_an_output_is_another_question() -> None:
    made = (
        outputs_for(("embedding",), load_card("nano").architecture, 10, unit_length=unit)
        for unit in (False, True)
    )
    keys = {answers._key(Reference(nano(), outputs=outputs), IMAGES) for outputs in made}
    assert len(keys) == 2


def test_the_oldest_goes(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST", 1)
    reference = Reference(nano())
    for images in (IMAGES, IMAGES[:1], IMAGES):
        reference(images)
    assert asked == [2, 1, 2]


def test_exports_are_made_with_it(trained_nano: Path) -> None:
    assert Reference.all.__module__ == "tests.answers"
