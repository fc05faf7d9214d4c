"""docs/tutorial.md: every block of it, in its order, in a folder as it describes one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rest_deploy import photos
from tests.conftest import TRAINED_WEIGHTS
from tests.fenced import Block, blocks

CLONE = Path(__file__).resolve().parents[1]
PAGE = CLONE / "docs" / "tutorial.md"
RUN = {"sh", "python"}
SHOWN = {"text"}

COMMAND = f"""#!/bin/sh
exec "{sys.executable}" -m rest_deploy.cli "$@"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the page says is there: a checkpoint of the official script, labels and photos."""
    if not photos.available():
        pytest.skip("scikit-image's photos are not installed")
    weights = load_file(TRAINED_WEIGHTS)
    content = {
        "model": {name: value.clone() for name, value in weights.items()},
        "model_ema": weights,
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 299,
    }
    torch.save(content, tmp_path / "finetuned.pth")
    (tmp_path / "labels.txt").write_text("\n".join(photos.LABELS))
    save_crops(tmp_path / "photos", "train", 48)
    save_crops(tmp_path / "heldout", "test", 132)
    shutil.copy(next((tmp_path / "heldout" / "coffee").iterdir()), tmp_path / "photo.jpg")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "rest-deploy").write_text(COMMAND)
    (commands / "rest-deploy").chmod(0o755)
    return tmp_path


def save_crops(folder: Path, split: photos.Split, count: int) -> None:
    for index, crop in enumerate(photos.crops(split, count, seed=5)):
        target = folder / photos.LABELS[crop.photo] / f"{index}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        photos.load(crop).convert("RGB").save(target, quality=95)


def command(block: Block) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-c", block.text]
    return ["bash", "-e", "-u", "-o", "pipefail", "-c", block.text]


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(CLONE), "REST_DEPLOY_WORKSPACE": ""}


def run(block: Block, folder: Path) -> str:
    """What it prints. It must succeed and print something."""
    done = subprocess.run(
        command(block), cwd=folder, env=environment(folder), capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    said = f"{PAGE.name}:{block.line}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, said
    assert done.stdout.strip(), said
    return done.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, "the service ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail("the service was never ready")


def test_every_block_is_run_or_shown() -> None:
    found = blocks(PAGE)
    assert {block.language for block in found} == RUN | SHOWN
    assert sum(block.language == "sh" for block in found) >= 8
    assert sum(block.language == "python" for block in found) >= 3
    assert PAGE.read_text(encoding="utf-8").count("\n```") == 2 * len(found)


def test_links_of_the_page() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (PAGE.parent / target.partition("#")[0]).exists(), target
    assert "docs/tutorial.md" in (CLONE / "README.md").read_text(encoding="utf-8")


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ntrue | false\necho said\n```\n\n```sh\ntrue\n```\n")
    for block in blocks(page):
        with pytest.raises(AssertionError):
            run(block, tmp_path)


@pytest.mark.slow
def test_the_tutorial_runs(folder: Path) -> None:
    """Minutes: it builds two engines, studies the layers and measures."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    port, service, said = free_port(), None, []
    try:
        for block in blocks(PAGE):
            if block.language in SHOWN:
                continue
            text = block.text.replace("8000", str(port))
            block = Block(block.language, block.words, text, block.line)
            if "service" in block.words:
                service = subprocess.Popen(command(block), cwd=folder, env=environment(folder),
                                           start_new_session=True)  # fmt: skip
                wait_until_ready(port, service)
            else:
                said.append(run(block, folder))
    finally:
        if service is not None:
            os.killpg(service.pid, signal.SIGTERM)
            service.wait(60)
    whole = "\n".join(said)
    for words in (
        *("averaged weights (EMA) of model_ema", "variant nano, guessed", "PASS", "labelled top-1"),
        *("rest_nano.int8.openvino.onnx", '"coffee"', "(1, 22)"),
    ):
        assert words in whole, words
