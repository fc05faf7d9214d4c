"""INT8 models of other tools at their defaults, from a plain torch export of the same weights.

    python benchmarks/peers.py plain --variant lite --checkpoint F --output DIR
    python benchmarks/peers.py quantize onnxruntime|nncf|modelopt --output DIR

`plain` writes plain.onnx and calibration.npy; `quantize` adds TOOL.onnx. NNCF and ModelOpt are not
dependencies of this project: install them where `quantize` runs (ModelOpt in a venv of its own).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

PATH = click.Path(path_type=Path)
CALIBRATION_CROPS = 128
CALIBRATION_SEED = 5


@click.group()
def main() -> None:
    pass


@main.command()
@click.option("--variant", required=True)
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--output", type=PATH, required=True)
def plain(variant: str, checkpoint: Path, output: Path) -> None:
    """The reference module as torch exports it, all axes dynamic, and the calibration images."""
    from rest_deploy.cards import load_card
    from rest_deploy.quant.dataset import open_set

    output.mkdir(parents=True, exist_ok=True)
    card = load_card(variant)
    export_plain(variant, checkpoint, output / "plain.onnx")
    images = open_set(None, card.preprocessing, limit=CALIBRATION_CROPS, seed=CALIBRATION_SEED)
    np.save(output / "calibration.npy", np.concatenate(list(images.batches(8))))


def export_plain(variant: str, checkpoint: Path, path: Path) -> None:
    """The reference module as torch exports it, all axes dynamic."""
    import torch

    from rest_deploy.cards import load_card
    from rest_deploy.model.checkpoint import load_model, read_checkpoint

    module = load_model(load_card(variant), read_checkpoint(checkpoint)).module.eval()
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        module, (torch.zeros(2, 3, 224, 224),), dynamo=True, dynamic_shapes=(axes,),
        input_names=["image"], output_names=["logits"], opset_version=20,
    )  # fmt: skip
    assert program is not None
    program.save(path)


@main.command()
@click.argument("tool", type=click.Choice(["onnxruntime", "nncf", "modelopt"]))
@click.option("--output", type=PATH, required=True)
def quantize(tool: str, output: Path) -> None:
    """One tool at its defaults, its own model type for transformers where it has one."""
    images = np.load(output / "calibration.npy")
    source, target = output / "plain.onnx", output / f"{tool}.onnx"
    {"onnxruntime": _onnxruntime, "nncf": _nncf, "modelopt": _modelopt}[tool](
        source, target, images
    )
    package = "nvidia-modelopt" if tool == "modelopt" else tool
    (output / f"{tool}.version").write_text(f"{package} {version(package)}\n")


def _onnxruntime(source: Path, target: Path, images: Any) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self._batches = iter(np.split(images, len(images) // 8))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"image": batch}

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(prepared, target, Reader())


def _nncf(source: Path, target: Path, images: Any) -> None:
    import nncf
    import onnx

    batches: Iterator[Any] = iter(np.split(images, len(images)))
    quantized = nncf.quantize(
        onnx.load(source),
        nncf.Dataset([{"image": batch} for batch in batches]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    onnx.save(quantized, target)


def _modelopt(source: Path, target: Path, images: Any) -> None:
    from modelopt.onnx.quantization import quantize as run

    run(onnx_path=str(source), quantize_mode="int8", calibration_data={"image": images},
        output_path=str(target))  # fmt: skip


if __name__ == "__main__":
    main()
