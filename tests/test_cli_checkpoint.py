"""A fine-tuned checkpoint through the commands, whatever wraps it and whatever its image size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rest_deploy.artifact import read_sidecar
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.calibrate import Images, calibrate
from rest_deploy.verbs.gate import gate_data
from rest_deploy.verify.parity import Case, synthetic_images
from tests.conftest import TRAINED_WEIGHTS
from tests.test_cli import done, refused, run, untouched

SIZE = 96


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    return load_file(TRAINED_WEIGHTS)


@pytest.fixture(scope="module")
def finetuned(
    trained: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """A checkpoint as a Lightning module with a decoder saves it, its export, and what was said."""
    folder = tmp_path_factory.mktemp("finetuned")
    path = folder / "last.ckpt"
    state = {f"net._orig_mod.backbone.{name}": value for name, value in trained.items()}
    state["net._orig_mod.decode_head.conv_seg.weight"] = torch.zeros(3, 4)
    content = {
        "state_dict": {name: value + 1 for name, value in state.items()},
        "state_dict_ema": state,
        "optimizer": {"state": {0: {"step": torch.tensor(1)}}},
        "args": argparse.Namespace(input_size=SIZE, lr=1e-3),
        "epoch": 7,
    }
    torch.save(content, path)
    said = done("export", "--checkpoint", path, "--output-dir", folder / "out")
    return path, folder / "out" / "rest_nano.onnx", said


def test_the_same_function_as_the_plain_weights(
    finetuned: tuple[Path, Path, str], trained_nano: Path
) -> None:
    images = synthetic_images(Case(batch=2, height=64, width=96))
    wrapped, plain = (Session.open(path) for path in (finetuned[1], trained_nano))
    assert np.array_equal(wrapped.run(images), plain.run(images))
    states = {one.metadata.weights.state_sha256 for one in (wrapped, plain)}
    assert len(states) == 1


def test_what_was_found_is_said(finetuned: tuple[Path, Path, str]) -> None:
    said = " ".join(finetuned[2].split())
    for words in (
        "found: variant nano, guessed: all ",
        "found: averaged weights (EMA) of state_dict_ema.net._orig_mod.backbone; --checkpoint-key "
        "state_dict.net._orig_mod.backbone takes the others",
        "found: left out 1 weight of net.decode_head",
        "found: not read: state_dict, optimizer",
        f"found: input size {SIZE}, resized to 109: args.input_size of the checkpoint is {SIZE}",
    ):
        assert words in said


def test_the_size_lands_in_everything_that_prepares_images(
    finetuned: tuple[Path, Path, str], tmp_path: Path
) -> None:
    model = finetuned[1]
    sidecar = read_sidecar(model)
    assert sidecar is not None
    assert sidecar.parity is not None
    assert f"1x3x{SIZE}x{SIZE}" in sidecar.parity.cases
    metadata = sidecar.metadata
    assert (metadata.card.preprocessing.crop, metadata.card.preprocessing.resize) == (SIZE, 109)
    assert gate_data(metadata, None, 16).images.shape == (16, 3, SIZE, SIZE)
    _, table = calibrate(model, workspace=tmp_path, images=Images(limit=16))
    assert table.calibration_set.preprocessing.crop == SIZE


def test_verify_finds_the_weights_again(finetuned: tuple[Path, Path, str]) -> None:
    found = json.loads(done("verify", finetuned[1], "--sizes", "64", "--batches", 1, "--json"))
    assert found["results"][0]["relative_error"] < 1e-5


def test_inspect_says_it_too(finetuned: tuple[Path, Path, str]) -> None:
    said = done("inspect", finetuned[0])
    assert "left out 1 weight of net.decode_head" in said
    assert "fits          nano" in said


@pytest.mark.parametrize("command", ["export", "deploy"])
def test_neither_variant_nor_checkpoint(command: str, tmp_path: Path) -> None:
    result = run(command, "--workspace", tmp_path / "none")
    assert result.exit_code == 2
    assert "Missing option '--variant'" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("two", ["2 models", "student, teacher", "--checkpoint-key student"]),
        (
            "none",
            ["fits no known variant", "closest is 'nano'", "unexpected stage1.1.norm1.weight"],
        ),
        ("maps", ["feature maps"]),
        ("head", ["missing head.bias"]),
    ],
)
def test_what_export_refuses(
    trained: dict[str, Tensor], tmp_path: Path, change: str, words: list[str]
) -> None:
    state = dict(trained)
    if change == "two":
        state = {f"{who}.{name}": value * (index + 1) for index, who in
                 enumerate(("student", "teacher")) for name, value in trained.items()}  # fmt: skip
    elif change == "none":
        state["stage1.1.norm1.weight"] = state["stage1.0.norm1.weight"]
    elif change == "maps":
        state = {name: value for name, value in state.items()
                 if not name.startswith(("norm.", "head."))}  # fmt: skip
    else:
        del state["head.bias"]
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with untouched(tmp_path):
        result = run("export", "--checkpoint", path, "--output-dir", tmp_path / "out")
    refused(result, 3, "weights.pth", *words)
