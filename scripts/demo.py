"""`make demo`: from a checkpoint to a proven ONNX model and predictions on real photos."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from rest_deploy import photos

CHECKPOINT = Path(__file__).parents[1] / "tests" / "assets" / "rest_nano_photos.safetensors"
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")


def main() -> None:
    run("export", "--variant", "nano", "--checkpoint", str(CHECKPOINT))
    run("inspect", "build/rest_nano.onnx")
    run("verify", "build/rest_nano.onnx", "--sizes", "224,97x131,192x256", "--batches", "1,5")
    with tempfile.TemporaryDirectory() as folder:
        run("predict", "build/rest_nano.onnx", "--top", "2", *held_out_crops(Path(folder)))


def held_out_crops(folder: Path) -> list[str]:
    """One crop of each shown photo from the area that training never saw, as PNG files."""
    files = []
    for crop in photos.crops("test", 10 * len(photos.LABELS), seed=1):
        label = photos.LABELS[crop.photo]
        path = folder / f"held-out-crop-of-{label}.png"
        if label in SHOWN and not path.exists():
            photos.load(crop).save(path)
            files.append(str(path))
    return files


def run(*arguments: str) -> None:
    """One command, shown as a user would type it."""
    print(f"\n$ rest-deploy {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "rest_deploy.cli", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
