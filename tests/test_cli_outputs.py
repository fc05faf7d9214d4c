"""`--output`, `--unit-length` and `--input` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rest_deploy.artifact import read_sidecar
from rest_deploy.cli import main
from tests.conftest import TRAINED_WEIGHTS


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    done = run(
        "export", "--variant", "nano", "--checkpoint", TRAINED_WEIGHTS, "--output", "embedding",
        "--unit-length", "--input", "uint8", "--output-dir", folder,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "rest_nano.unit-embedding.uint8.onnx"


def test_export(embedding: Path) -> None:
    sidecar = read_sidecar(embedding)
    assert sidecar is not None
    metadata = sidecar.metadata
    assert metadata.input_kind == "uint8"
    assert [(o.name, o.unit_length) for o in metadata.gives] == [("embedding", True)]
    assert metadata.output_name == "embedding"
    assert sidecar.parity is not None
    assert sidecar.parity.agreement is None
    assert sidecar.command.endswith("--output embedding --unit-length --input uint8")


def test_inspect_and_verify(embedding: Path) -> None:
    text = run("inspect", embedding)
    assert "uint8 (batch, height, width, 3), RGB" in text.output
    assert "embedding (batch, 128), of L2 norm 1" in text.output
    found = run("verify", embedding, "--sizes", "64", "--batches", "1", "--json")
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)["results"]
    assert (row["output"], row["kl"], row["agreement"]) == ("embedding", None, None)


def test_predict_says_what_to_do(embedding: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(photo)
    done = run("predict", embedding, photo)
    assert done.exit_code == 3
    assert "gives no classes, but embedding" in done.output
    assert "export --output logits" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--output", "logits", "--num-classes", "0"), "--output logits needs a head"),
        (("--output", "embedding", "--output", "embedding"), "was given twice"),
        (("--unit-length",), "--unit-length is of an embedding"),
    ],
)
def test_refused(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = run("export", "--variant", "nano", "--output-dir", tmp_path, *arguments)
    assert done.exit_code == 3
    assert words in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--output", "c2"), ("--input", "int8")])
def test_unknown_words(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run("export", "--variant", "nano", "--output-dir", tmp_path, *arguments)
    assert done.exit_code == 2
