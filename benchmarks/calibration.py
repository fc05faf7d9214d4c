"""Calibration's peak memory for few and many images, and its rate against plain inference.

    python benchmarks/calibration.py --variant lite --output F.json

Each measurement is a process of its own (peak resident memory); rates are images per second on ONNX
Runtime's CPU provider with the same graph and batch size. Calibration is all of it: decoding, the
passes over the images, thresholds, fitted rounding.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from rest_deploy import verbs
from rest_deploy.artifact import to_json, write_text
from rest_deploy.doctor import examine
from rest_deploy.quant.calibrate import BATCH, calibrate
from rest_deploy.quant.dataset import open_set
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.runtime.session import Session

PATH = click.Path(path_type=Path)
COUNTS = (64, 512)
RATE_IMAGES = 256
ROUNDS = 3


@click.group(invoke_without_command=True)
@click.option("--variant", default="lite", show_default=True)
@click.option("--output", type=PATH)
@click.pass_context
def main(context: click.Context, variant: str, output: Path | None) -> None:
    if context.invoked_subcommand is not None:
        return
    if output is None:
        raise click.UsageError("--output is needed")
    with tempfile.TemporaryDirectory() as folder:
        model = verbs.export(variant, output_dir=Path(folder)).path
        peaks = {count: _run("peak", model, count)["peak_mb"] for count in COUNTS}
        rounds = [_run("rate", model, RATE_IMAGES) for _ in range(ROUNDS)]
    record = {
        "command": f"python benchmarks/calibration.py --variant {variant} --output F",
        "variant": variant,
        "machine": [f"{row.name}: {row.detail}" for row in examine().rows if row.area == "cpu"],
        "peak_mb": peaks,
        "peak_ratio": peaks[COUNTS[1]] / peaks[COUNTS[0]],
        "rates": rounds,
        "rate_ratio": sorted(found["ratio"] for found in rounds)[ROUNDS // 2],
    }
    write_text(output, to_json(record))
    click.echo(to_json(record))


@main.command()
@click.argument("model", type=PATH)
@click.argument("count", type=int)
def peak(model: Path, count: int) -> None:
    """Calibrate and tell the process's peak memory, in MB."""
    preprocessing = Session.open(model).metadata.card.preprocessing
    calibrate(model, open_set(None, preprocessing, limit=count), load_recipe("int8"))
    click.echo(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


@main.command()
@click.argument("model", type=PATH)
@click.argument("count", type=int)
def rate(model: Path, count: int) -> None:
    """Images a second: plain inference before and after, between them calibration on the same."""
    session = Session.open(model)
    images = open_set(None, session.metadata.card.preprocessing, limit=count)
    batches = list(images.batches(BATCH))
    recipe = load_recipe("int8")

    def plain() -> float:
        started = time.perf_counter()
        for batch in batches:
            session.run(batch)
        return time.perf_counter() - started

    session.run(batches[0])
    before = plain()
    started = time.perf_counter()
    calibrate(model, images, recipe)
    seconds = time.perf_counter() - started
    inference = (before + plain()) / 2
    click.echo(json.dumps({
        "plain_per_s": count / inference, "calibration_per_s": count / seconds,
        "ratio": inference / seconds,
    }))  # fmt: skip


def _run(command: str, model: str, count: int) -> dict[str, float]:
    words = [sys.executable, __file__, command, model, str(count)]
    found = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    parsed: dict[str, float] = json.loads(found)
    return parsed


if __name__ == "__main__":
    main()
