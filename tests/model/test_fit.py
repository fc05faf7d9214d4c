"""Which variant a state dict is of."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from rest_deploy.cards import available, load_card
from rest_deploy.errors import CheckpointError
from rest_deploy.model import fit
from rest_deploy.model.family import build

State = dict[str, Tensor]


def state(variant: str, classes: int = 7) -> State:
    """Names and shapes of a variant, without values."""
    with torch.device("meta"):
        return dict(build(load_card(variant).architecture, classes).state_dict())


@pytest.mark.parametrize("variant", list(available()))
@pytest.mark.parametrize("classes", [0, 7])
def test_every_shipped_variant_is_told(variant: str, classes: int) -> None:
    found = fit.guess(state(variant, classes), "f.pth")
    assert found.card == load_card(variant)
    assert f"variant {variant}, guessed" in found.why


def test_without_the_last_norm() -> None:
    backbone = state("nano", 0)
    for name in fit.LAST_NORM:
        del backbone[name]
    assert fit.guess(backbone, "f.pth").card.variant == "nano"
    del backbone["stage4.0.norm2.bias"]
    assert fit.misfits(load_card("nano"), backbone) == ["missing stage4.0.norm2.bias"]


@pytest.mark.parametrize("left", [("norm.bias",), ("norm.weight",)])
def test_half_a_norm_is_missed(left: tuple[str, ...]) -> None:
    backbone = {name: value for name, value in state("nano", 0).items() if name not in left}
    assert fit.misfits(load_card("nano"), backbone) == [f"missing {left[0]}"]


def test_a_head_without_its_norm_is_missed() -> None:
    whole = {name: value for name, value in state("nano").items() if name not in fit.LAST_NORM}
    assert fit.misfits(load_card("nano"), whole) == [f"missing {name}" for name in fit.LAST_NORM]


def test_two_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    nano = load_card("nano")
    twin = msgspec.structs.replace(nano, variant="pico", name="rest_pico")
    monkeypatch.setattr(fit, "available", lambda: {"nano": nano, "pico": twin})
    with pytest.raises(CheckpointError, match=r"f\.pth fits several variants.*nano, pico") as error:
        fit.guess(state("nano"), "f.pth")
    assert error.value.hint == "say which it is: --variant nano"


def test_none_that_fits() -> None:
    changed = state("lite")
    changed["stage1.2.norm1.weight"] = changed["stage1.1.norm1.weight"]
    with pytest.raises(
        CheckpointError, match=r"closest is 'lite': unexpected stage1\.2\.norm1\.weight \("
    ):
        fit.guess(changed, "f.pth")


def test_what_differs_is_cut_short() -> None:
    with pytest.raises(CheckpointError, match=r"missing stem.*; and \d+ more"):
        fit.guess({"conv.weight": torch.zeros(3)}, "f.pth")
