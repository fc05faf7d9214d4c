"""What an export begins with: the variant that was guessed, the size the checkpoint names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from rest_deploy.cards import load_card
from rest_deploy.errors import CheckpointError, InputError
from rest_deploy.model.rest import ResT
from rest_deploy.verbs.source import Source, choose

NANO = load_card("nano")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(ResT(NANO.architecture, 5).state_dict())


@pytest.fixture
def save(state: dict[str, Tensor], tmp_path: Path) -> Any:
    def saved(**beside: object) -> Path:
        path = tmp_path / "weights.pth"
        torch.save({"model": state, **beside}, path)
        return path

    return saved


def sizes(found: Source) -> tuple[int, int]:
    return found.card.preprocessing.crop, found.card.preprocessing.resize


def test_the_variant_is_guessed_and_said(save: Any) -> None:
    found = choose(None, save())
    assert found.card == NANO
    assert found.notes[0].startswith("variant nano, guessed: all ")
    assert choose("nano", save()).notes == ("weights of model",)


def test_nothing_to_guess_from() -> None:
    with pytest.raises(InputError, match="neither a variant nor a checkpoint"):
        choose(None, None)
    assert choose("nano", None).card == NANO


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (224, 256)),
        ({"input_size": 384}, (384, 438)),
        ({"input_size": 384, "resize": 384}, (384, 384)),
        ({"input_size": 96}, (96, 109)),
        ({"resize": 300}, (224, 300)),
    ],
)
def test_another_size_is_asked_for(
    save: Any, given: dict[str, int], expected: tuple[int, int]
) -> None:
    for path in (None, save()):
        found = choose("nano", path, **given)  # type: ignore[arg-type]
        assert sizes(found) == expected
        changed = msgspec.structs.replace(found.card, preprocessing=NANO.preprocessing)
        assert changed == NANO


@pytest.mark.parametrize(("size", "resize"), [(16, None), (224, 200), (300, 256)])
def test_sizes_that_do_not_go(size: int, resize: int | None) -> None:
    with pytest.raises(InputError, match="expected 32 <= input size <= resize"):
        choose("nano", None, input_size=size, resize=resize)


def test_the_size_of_the_training_is_taken_and_said(save: Any) -> None:
    found = choose(None, save(args=argparse.Namespace(input_size=384, crop_pct=1.0)))
    assert sizes(found) == (384, 438)
    assert found.notes[2:] == (
        "input size 384, resized to 438: args.input_size of the checkpoint is 384",
        "its crop_pct 1 resizes to 384, this to 438: --resize 384 for theirs",
        "the official script evaluates at 384 by squeezing the whole image to a square; here its "
        "middle is cut out",
    )
    assert not found.warnings


def test_what_is_asked_for_comes_first(save: Any) -> None:
    path = save(args=argparse.Namespace(input_size=384))
    found = choose("nano", path, input_size=256)
    assert sizes(found) == (256, 292)
    assert "args.input_size of the checkpoint is 384; --input-size is 256" in found.notes
    assert sizes(choose("nano", path, resize=400)) == (384, 400)


def test_a_size_below_the_least_is_not_taken(save: Any) -> None:
    found = choose("nano", save(args=argparse.Namespace(input_size=28)))
    assert sizes(found) == (224, 256)
    assert "is 28, less than 32: not taken" in found.warnings[0]


def test_a_card_given_as_a_value_stays(save: Any) -> None:
    """A refitted engine keeps its preprocessing."""
    path = save(args=argparse.Namespace(input_size=384))
    assert choose(NANO, path).card == NANO


def test_another_normalization_is_a_warning(save: Any) -> None:
    cfg = {"input_size": (3, 224, 224), "mean": (0.5, 0.5, 0.5), "std": NANO.preprocessing.std}
    found = choose("nano", save(pretrained_cfg=cfg))
    assert sizes(found) == (224, 256)
    (warning,) = found.warnings
    assert "trained with mean [0.5, 0.5, 0.5]" in warning
    same = cfg | {"mean": NANO.preprocessing.mean}
    assert choose("nano", save(pretrained_cfg=same)).warnings == ()


def test_two_models_in_a_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    both = {f"{name}.{key}": value + index for index, name in enumerate(("student", "teacher"))
            for key, value in state.items()}  # fmt: skip
    torch.save(both, path)
    with pytest.raises(CheckpointError, match="student, teacher"):
        choose(None, path)
    assert choose(None, path, key="teacher").card == NANO
