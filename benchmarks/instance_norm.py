"""Error of the InstanceNorm forms in float32, exported to ONNX Runtime, against float64.

    python benchmarks/instance_norm.py [--checkpoint F] --output benchmarks/results/NAME.json

Fresh weights make near-uniform attention maps, the worst case; a trained checkpoint the usual one.
The row "stock" is torch.onnx.export of the plain module with nn.InstanceNorm2d, nothing rewritten.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from rest_deploy.artifact import to_json, write_text
from rest_deploy.cards import load_card
from rest_deploy.contracts import InstanceNormForm, Weights
from rest_deploy.doctor import examine
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.checkpoint import load_model, read_checkpoint
from rest_deploy.model.reference import Reference
from rest_deploy.model.rest import MapNorm
from rest_deploy.verbs import silent
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images

SIZES = ((64, 64), (97, 131), (224, 224), (448, 448))
FORMS: tuple[InstanceNormForm, ...] = ("folded", "decomposed", "native")


def stock_session(module: Backbone, size: tuple[int, int], folder: Path) -> Any:
    """What a user gets from torch.onnx.export alone, at one fixed size."""
    import onnxruntime

    plain = copy.deepcopy(module)
    for block in plain.modules():
        for name, child in list(block.named_children()):
            if isinstance(child, MapNorm):
                heads = block.heads
                assert isinstance(heads, int)
                setattr(block, name, nn.InstanceNorm2d(heads))
    path = folder / f"stock_{size[0]}x{size[1]}.onnx"
    torch.onnx.export(plain.eval(), (torch.zeros(1, 3, *size),), str(path), dynamo=True,
                      verbose=False, input_names=["image"], output_names=["logits"])  # fmt: skip
    return onnxruntime.InferenceSession(str(path))


@click.command()
@click.option("--variant", default="lite", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(variant: str, checkpoint: Path | None, output: Path) -> None:
    from rest_deploy import verbs
    from rest_deploy.runtime.session import Session

    card = load_card(variant)
    source = read_checkpoint(checkpoint) if checkpoint else None
    loaded = load_model(card, source)
    reference = Reference(loaded.module)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form in (*FORMS, None):  # None: stock
            session: Any = None
            if form is not None:
                report = verbs.export(variant, output_dir=folder, checkpoint=checkpoint,
                                      instance_norm=form, progress=silent)  # fmt: skip
                session = Session.open(report.path)
            for height, width in SIZES:
                images = synthetic_images(Case(batch=1, height=height, width=width))
                if form is None:
                    stock = stock_session(loaded.module, (height, width), folder)
                    actual = stock.run(None, {"image": images})[0]
                else:
                    actual = session.run(images)
                error = relative_error(reference(images), np.asarray(actual))
                rows.append(
                    {"form": form or "stock", "size": f"{height}x{width}", "relative_error": error}
                )
                click.echo(f"{form or 'stock':11s} {height}x{width:<5d} {error:.2e}")
    weights: Weights = loaded.weights
    record = {
        "command": "python benchmarks/instance_norm.py"
        + (" --checkpoint F" if checkpoint else "")
        + f" --variant {variant} --output F",
        "variant": variant,
        "weights": {"kind": weights.kind, "state_sha256": weights.state_sha256},
        "machine": [f"{row.name}: {row.detail}" for row in examine().rows if row.area == "cpu"],
        "rows": rows,
    }
    write_text(output, to_json(record))


if __name__ == "__main__":
    main()
