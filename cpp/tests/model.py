"""A trained rest_nano for the C++ tests, and what Python's session answers for some images.

    python model.py FOLDER

FOLDER/cases.txt has one case a line, fields separated by tabs: batch, height, width, the file of
the normalized images and the file of the logits, both raw float32. FOLDER/floats and FOLDER/pixels
have the same of a model with every output, all.onnx: a file for each, in the model's order; the
images of the latter are raw uint8 (N, H, W, 3). FOLDER/engine has an engine with a self-test, which
Python's session passed here.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar, sidecar_path
from rest_deploy.errors import ArtifactError, RestDeployError
from rest_deploy.runtime.provider import default_cache
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER
from rest_deploy.signature import OUTPUT_KINDS, InputKind

WEIGHTS = Path(__file__).parents[2] / "tests" / "assets" / "rest_nano_photos.safetensors"
# 32x32 first: after such a first run OpenVINO gives wrong logits for larger images.
SHAPES = ((1, 32, 32), (1, 224, 224), (3, 97, 131), (5, 64, 64), (4, 64, 96))


def exported(folder: Path, name: str, **options: Any) -> Path:
    """The model, exported unless it is there already: that takes some seconds."""
    model = folder / name
    try:
        if model.is_file() and read_sidecar(model) is not None:
            return model
    except ArtifactError:
        pass  # half of it is there: it is written again
    report = verbs.export("nano", output_dir=folder, checkpoint=WEIGHTS, **options)
    if report.path != str(model):
        shutil.copyfile(report.path, model)
        shutil.copyfile(sidecar_path(Path(report.path)), sidecar_path(model))
    return model


def built(export: Path, folder: Path) -> None:
    """An engine, built anew: its self-test is of this package."""
    request = verbs.Request(precision="fp32", gate_images=16)
    verbs.build_engine(export, request, workspace=folder, backend="openvino")
    (engine,) = folder.glob("*.openvino.onnx")
    shutil.rmtree(default_cache(engine), ignore_errors=True)
    Session.open(engine, specialize=NEVER).close()


def answered(model: Path, folder: Path) -> None:
    """What Python's session answers for each of `SHAPES`."""
    lines = []
    with Session.open(model, backend="openvino", specialize=NEVER) as session:
        for index, (batch, height, width) in enumerate(SHAPES):
            random = np.random.default_rng(index)
            images: Any
            if session.metadata.input_kind == "uint8":
                images = random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
            else:
                shape = (batch, 3, height, width)
                images = random.standard_normal(shape, dtype=np.float32)
            (folder / f"{index}.images").write_bytes(images.tobytes())
            fields = [batch, height, width, f"{index}.images"]
            for name, values in session.run_all(images).items():
                (folder / f"{index}.{name}").write_bytes(values.tobytes())
                fields.append(f"{index}.{name}")
            lines.append("\t".join(map(str, fields)))
    (folder / "cases.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    folder = Path(sys.argv[1])
    model = exported(folder, "rest_nano.onnx")
    answered(model, folder)
    built(model, folder / "engine")
    kinds: tuple[tuple[str, InputKind], ...] = (("floats", "float"), ("pixels", "uint8"))
    for name, kind in kinds:
        place = folder / name
        model = exported(place, "all.onnx", outputs=OUTPUT_KINDS, input_kind=kind,
                         unit_length=kind == "uint8")  # fmt: skip
        answered(model, place)


if __name__ == "__main__":
    try:
        main()
    except RestDeployError as error:
        raise SystemExit(f"error: {error}") from error
