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
from rest_deploy.cards import load_card
from rest_deploy.model.family import build
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
        ("maps", ["feature maps", "no embedding", "--output features"]),
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
        wanted = ["--output", "embedding"] if change == "maps" else []
        result = run("export", "--checkpoint", path, "--output-dir", tmp_path / "out", *wanted)
    refused(result, 3, "weights.pth", *words)


def test_a_segmenter_of_v2_gives_its_normalized_maps(tmp_path: Path) -> None:
    """As mmseg saves one: no head, no last norm, a norm for the output of each stage."""
    card = load_card("v2-nano")
    torch.manual_seed(2)
    module = build(card.architecture, 0)
    names = module.OUTPUT_NORMS
    module.add_output_norms(names, card.architecture.dims)
    for name in names:
        norm = getattr(module, name)
        torch.nn.init.normal_(norm.weight, 1.0, 0.1)
        torch.nn.init.normal_(norm.bias, 0.0, 0.1)
    state = {f"backbone.{name}": value for name, value in module.state_dict().items()
             if not name.startswith("norm.")}  # fmt: skip
    state["decode_head.conv_seg.weight"] = torch.zeros(3, 4)
    path = tmp_path / "iter_160000.pth"
    torch.save({"meta": {"iter": 160000}, "state_dict": state}, path)
    said = done("export", "--checkpoint", path, "--output-dir", tmp_path / "out")
    assert "variant v2-nano, guessed" in said
    assert "as detectors have them: norm_1, norm_2, norm_3, norm_4" in " ".join(said.split())
    (model,) = (tmp_path / "out").glob("*.onnx")
    session = Session.open(model)
    assert [output.name for output in session.metadata.gives] == ["c2", "c3", "c4", "c5"]
    image = synthetic_images(Case(batch=2, height=64, width=96))
    found = session.run_normalized(image)
    with torch.inference_mode():
        shown = module.eval().behind_norms(module.features(torch.from_numpy(image)))
        c5 = shown.tokens.transpose(1, 2).reshape(shown.grid.shape)
    for name, expected in zip(("c2", "c3", "c4", "c5"), (*shown[:3], c5), strict=True):
        assert np.allclose(found[name], expected.numpy(), atol=1e-3), name
    with torch.inference_mode():
        before = module.features(torch.from_numpy(image)).c2.numpy()
    assert not np.allclose(found["c2"], before, atol=0.1)
