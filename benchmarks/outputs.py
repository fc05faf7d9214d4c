"""What INT8 does to every output of a trained model, and to retrieval by its embedding.

    python benchmarks/outputs.py --variant lite --checkpoint F --output F.json

The export gives all outputs from pixels; each CPU backend gets its INT8 engine, calibrated with the
default photos. Errors are of held-out crops (of maps: the first 32) against PyTorch in float64;
neighbours are looked for among those crops, by the cosine of embeddings.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy import photos, verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.bench import environment
from rest_deploy.model.reference import Reference
from rest_deploy.preprocess import to_tensor
from rest_deploy.runtime.session import Session
from rest_deploy.signature import OUTPUT_KINDS
from rest_deploy.verbs import Images, Request
from rest_deploy.verify import gate, metrics
from rest_deploy.verify.parity import load_reference

PATH = click.Path(path_type=Path)
BACKENDS = ("openvino", "onnxruntime")
SEED = 7
"""Of the crops, which are of the held-out split; calibration takes the other one."""

Array = npt.NDArray[np.floating]


@click.command()
@click.option("--variant", required=True)
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--output", type=PATH, required=True)
@click.option("--calibration", type=int, default=256, show_default=True, help="Images.")
@click.option("--crops", type=int, default=512, show_default=True)
def main(variant: str, checkpoint: Path, output: Path, calibration: int, crops: int) -> None:
    """Build both engines, measure them and write the JSON."""
    chosen = photos.crops("test", crops, seed=SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = verbs.export(
            variant, output_dir=folder, checkpoint=checkpoint, outputs=OUTPUT_KINDS,
            unit_length=True, input_kind="uint8",
        )  # fmt: skip
        metadata = report.metadata
        images = np.stack(
            [to_tensor(photos.load(crop), metadata.card.preprocessing) for crop in chosen]
        )
        reference = Reference(load_reference(metadata), outputs=metadata.gives)
        exact = gate.answers(reference.all, images, metadata.gives)
        rows = {}
        for backend in BACKENDS:
            built = verbs.build_engine(
                Path(report.path), Request(precision="int8", images=Images(limit=calibration)),
                workspace=folder, backend=backend,
            )  # fmt: skip
            with Session.open(built.path) as session:
                found = gate.answers(session.run_normalized, images, metadata.gives)
            rows[backend] = _row(exact, found, [crop.photo for crop in chosen])
    here = environment.examine()
    write_text(output, to_json({
        "command": f"python benchmarks/outputs.py --variant {variant} --checkpoint F --output F "
                   f"--calibration {calibration} --crops {crops}",
        "variant": variant,
        "state_sha256": metadata.weights.state_sha256,
        "environment": msgspec.to_builtins(here),
        "backends": rows,
    }))  # fmt: skip
    for backend, row in rows.items():
        errors = ", ".join(f"{key} {value:.1e}" for key, value in row["relative_error"].items())
        print(f"{variant} on {backend}: {errors}; neighbours: {row['neighbours']}")


def _row(exact: dict[str, Array], found: dict[str, Array], photo: list[int]) -> dict[str, Any]:
    errors = {
        name: metrics.relative_error(expected, found[name]) for name, expected in exact.items()
    }
    before, after = exact["embedding"], found["embedding"]
    of, by = np.asarray(photo), (metrics.nearest(before), metrics.nearest(after))
    return {
        "relative_error": errors,
        "agreement": metrics.agreement(exact["logits"], found["logits"]),
        "neighbours": {
            "the very same": float((by[0] == by[1]).mean()),
            "within 0.001 as near": metrics.neighbours_kept(before, after),
            "of the same photo as before": float((of[by[0]] == of[by[1]]).mean()),
        },
    }


if __name__ == "__main__":
    main()
