"""The containers that training scripts write, and which entry is taken."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rest_deploy.cards import load_card
from rest_deploy.errors import CheckpointError
from rest_deploy.model.checkpoint import load_model, read_checkpoint
from rest_deploy.model.rest import ResT

CARD = load_card("nano")


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    weights: dict[str, Tensor] = ResT(CARD.architecture, 6).state_dict()
    return weights


def save(folder: Path, content: object) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def head(path: Path, key: str | None = None) -> Tensor:
    found: Tensor = load_model(CARD, read_checkpoint(path, key)).module.state_dict()["head.weight"]
    return found


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema", "state_dict_ema", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_and_prefixed(tmp_path: Path, key: str, prefix: str) -> None:
    weights = state(1)
    path = save(tmp_path, {key: {prefix + k: v for k, v in weights.items()}, "epoch": 3})
    assert read_checkpoint(path).key == key
    assert torch.equal(head(path), weights["head.weight"])


def test_plain_state_dict(tmp_path: Path) -> None:
    path = save(tmp_path, state(1))
    assert read_checkpoint(path).key == ""
    assert read_checkpoint(path).num_classes == 6


def test_averaged_weights_come_first_and_a_key_overrides(tmp_path: Path) -> None:
    path = save(tmp_path, {"model": state(1), "model_ema": state(2)})
    assert torch.equal(head(path), state(2)["head.weight"])
    assert torch.equal(head(path, "model"), state(1)["head.weight"])


def test_the_official_script_stores_its_arguments(tmp_path: Path) -> None:
    arguments = argparse.Namespace(lr=1e-3, model="rest_lite", resume="")
    path = save(tmp_path, {"model": state(1), "args": arguments, "epoch": 300})
    assert torch.equal(head(path), state(1)["head.weight"])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    path = save(tmp_path, {k: v.half() for k, v in state(1).items()})
    assert head(path).dtype == torch.float32


def test_the_hash_is_of_the_values_not_of_the_file(tmp_path: Path) -> None:
    plain = load_model(CARD, read_checkpoint(save(tmp_path, state(1)))).weights
    wrapped = load_model(CARD, read_checkpoint(save(tmp_path, {"model": state(1)}))).weights
    other = load_model(CARD, read_checkpoint(save(tmp_path, state(2)))).weights
    assert plain.state_sha256 == wrapped.state_sha256 != other.state_sha256
    assert plain.sha256 != wrapped.sha256


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3)])
def test_nothing_to_load(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"holds (no state dict|a \w+, expected)"):
        read_checkpoint(save(tmp_path, content))
