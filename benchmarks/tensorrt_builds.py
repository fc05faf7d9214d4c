"""Every variant in every precision through NVIDIA's builder: time, size, scratch memory.

    python benchmarks/tensorrt_builds.py --output benchmarks/results/tensorrt_builds.json

Fresh weights, 16 calibration images, one dynamic ONNX a variant, no GPU. "wide": one profile from
1x3x64x64 to 32x3x512x512; "tiers": two, to 32x3x224x224 and to 8x3x512x512. Every build passed the
precision proof, or it would not be in the file.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from rest_deploy import verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.contracts import Precision
from rest_deploy.doctor import examine
from rest_deploy.engine import tensorrt

LEAST, USUAL = "1x3x64x64", "8x3x224x224"
SHAPES = {
    "wide": verbs.Wishes((LEAST,), (USUAL,), ("32x3x512x512",)),
    "tiers": verbs.Wishes((LEAST, LEAST), (USUAL, "2x3x512x512"), ("32x3x224x224", "8x3x512x512")),
}
OPSET = 22
"""BF16 needs it."""


@click.command()
@click.option("--variants", default="lite,small,base,large", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(variants: str, output: Path) -> None:
    rows: list[dict[str, Any]] = []
    for variant in variants.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = Path(verbs.export(variant, output_dir=folder, opset=OPSET).path)
            for precision in get_args(Precision):
                for shapes, given in SHAPES.items():
                    request = verbs.Request(precision, verbs.Images(limit=16), gate=False)
                    sms = tensorrt.able(tensorrt.known_sms("tensorrt-rtx"), precision, "fp16")
                    if precision == "int8":  # Turing's INT8 convolutions are planned in FP16
                        sms = tuple(sm for sm in sms if sm != "75")
                    wishes = replace(given, target_sm=sms)
                    report = verbs.build_engine(
                        model, request, workspace=folder, backend="tensorrt-rtx", wishes=wishes
                    )
                    fit = report.build.fit
                    assert fit is not None
                    row = {
                        "variant": variant,
                        "precision": precision,
                        "shapes": shapes,
                        "sms": fit.sms,
                        "seconds": fit.build_seconds,
                        "size_bytes": report.size_bytes,
                        "scratch_bytes": fit.scratch_bytes,
                        "layers": fit.layers,
                    }
                    rows.append(row)
                    click.echo(row)
    record = {
        "command": f"python benchmarks/tensorrt_builds.py --variants {variants} --output F",
        "machine": [f"{row.name}: {row.detail}" for row in examine().rows if row.area == "cpu"],
        "builder": f"tensorrt-rtx {tensorrt.version('tensorrt-rtx')}",
        "opset": OPSET,
        "rows": rows,
    }
    write_text(output, to_json(record))


if __name__ == "__main__":
    main()
