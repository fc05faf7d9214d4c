"""INT8 by ways to choose ranges, and by role: logit error on held-out crops of real photos.

    python benchmarks/quantization.py --variant nano \\
        --checkpoint tests/assets/rest_nano_photos.safetensors --output benchmarks/results/NAME.json

Each row quantizes the same exported model, calibrated on the same crops, and runs it on ONNX
Runtime's CPU provider against PyTorch in float64.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy import photos, verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.cards import load_card
from rest_deploy.doctor import examine
from rest_deploy.model.checkpoint import load_model, read_checkpoint
from rest_deploy.model.reference import Reference
from rest_deploy.preprocess import to_tensor
from rest_deploy.quant.calibrate import calibrate, quantize
from rest_deploy.quant.dataset import open_set
from rest_deploy.quant.recipe import Corrections, Recipe, Scaling, load_recipe
from rest_deploy.quant.scales import Algorithm
from rest_deploy.runtime.session import Session
from rest_deploy.verify import metrics

BATCH = 32
ALGORITHMS: tuple[Algorithm, ...] = ("minmax", "mse", "percentile", "entropy")


def recipes() -> dict[str, Recipe]:
    """Name of a row -> recipe; all start from the shipped one."""
    shipped = load_recipe("int8")
    rows = {"shipped recipe": shipped}
    for algorithm in ALGORITHMS:
        for share in (0.0, 0.5):
            rows[f"{algorithm}, equalization {share}"] = msgspec.structs.replace(
                shipped,
                activations=Scaling(algorithm=algorithm),
                corrections=Corrections(equalization=share),
            )
    for role in shipped.quantize:
        rows[f"only {role}"] = msgspec.structs.replace(shipped, quantize=(role,))
    return rows


@click.command()
@click.option("--variant", default="nano", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--calibration-crops", default=128, show_default=True)
@click.option("--test-crops", default=512, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(
    variant: str, checkpoint: Path, calibration_crops: int, test_crops: int, output: Path
) -> None:
    card = load_card(variant)
    crops = photos.crops("test", test_crops, seed=7)
    images = np.stack([to_tensor(photos.load(crop), card.preprocessing) for crop in crops])
    reference = Reference(load_model(card, read_checkpoint(checkpoint)).module)
    expected = np.concatenate(
        [reference(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    )
    calibration = open_set(None, card.preprocessing, limit=calibration_crops, seed=5)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(verbs.export(variant, output_dir=folder, checkpoint=checkpoint).path)
        for row, recipe in recipes().items():
            graph, _ = quantize(model, calibrate(model, calibration, recipe))
            path = folder / "quantized.onnx"
            ir.save(graph, path)
            actual = _logits(Session.open(path), images)
            rows.append(
                {
                    "recipe": row,
                    "relative_error": metrics.relative_error(expected, actual),
                    "kl": metrics.kl_divergence(expected, actual),
                    "agreement": metrics.agreement(expected, actual),
                }
            )
            click.echo(f"{row:32s} {rows[-1]['relative_error']:.2e} {rows[-1]['agreement']:.2%}")
    command = f"python benchmarks/quantization.py --variant {variant} --checkpoint F --output F"
    machine = [f"{row.name}: {row.detail}" for row in examine().rows if row.area == "cpu"]
    record = {
        "command": command,
        "variant": variant,
        "calibration_crops": calibration_crops,
        "test_crops": test_crops,
        "machine": machine,
        "rows": rows,
    }
    write_text(output, to_json(record))


def _logits(session: Session, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    parts = [session.run(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
