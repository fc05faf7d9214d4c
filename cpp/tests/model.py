"""A trained rest_nano for the C++ tests, and what Python's session answers for some images.

    python model.py FOLDER

FOLDER/cases.txt has one case a line, fields separated by tabs: batch, height, width, the file of
the normalized images and the file of the logits, both raw float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar
from rest_deploy.errors import ArtifactError, RestDeployError
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER

WEIGHTS = Path(__file__).parents[2] / "tests" / "assets" / "rest_nano_photos.safetensors"
# 32x32 first: after such a first run OpenVINO gives wrong logits for larger images.
SHAPES = ((1, 32, 32), (1, 224, 224), (3, 97, 131), (5, 64, 64), (4, 64, 96))


def exported(folder: Path) -> Path:
    """The model, exported unless it is there already: that takes some seconds."""
    model = folder / "rest_nano.onnx"
    try:
        if model.is_file() and read_sidecar(model) is not None:
            return model
    except ArtifactError:
        pass  # half of it is there: it is written again
    verbs.export("nano", output_dir=folder, checkpoint=WEIGHTS)
    return model


def main() -> None:
    folder = Path(sys.argv[1])
    model = exported(folder)
    lines = []
    with Session.open(model, backend="openvino", specialize=NEVER) as session:
        for index, (batch, height, width) in enumerate(SHAPES):
            random = np.random.default_rng(index)
            images = random.standard_normal((batch, 3, height, width), dtype=np.float32)
            logits = session.run(images)
            (folder / f"{index}.images").write_bytes(images.tobytes())
            (folder / f"{index}.logits").write_bytes(logits.tobytes())
            fields = (batch, height, width, f"{index}.images", f"{index}.logits")
            lines.append("\t".join(map(str, fields)))
    (folder / "cases.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except RestDeployError as error:
        raise SystemExit(f"error: {error}") from error
