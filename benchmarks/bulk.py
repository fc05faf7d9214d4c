"""`rest-deploy embed` against what its parts can do, and its memory for few and many images.

    python benchmarks/bulk.py --engine F --output F.json

Each measurement is a process of its own, in rounds. The engine alone and the decoding alone each
have all cores; a run that kept the cores busy with nothing else would take as long as both one
after the other. `plain` is the loop that a script would have: decode a batch, run it, the next.
Photos: 500x375 JPEG made of crops of scikit-image's.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import numpy as np
from PIL import Image

from rest_deploy import photos
from rest_deploy.artifact import read_sidecar, to_json, write_text
from rest_deploy.doctor import examine
from rest_deploy.embed.pipeline import Decoder
from rest_deploy.embed.run import Wishes, embed, open_engine
from rest_deploy.embed.sources import entries
from rest_deploy.preprocess import load_image, to_tensor

PATH = click.Path(path_type=Path)
SIZE = (500, 375)
KINDS = ("engine", "decode", "plain", "embed")
DISTINCT = 256
"""Different photos; the files are more, each a copy under a name of its own."""


@click.group(invoke_without_command=True)
@click.option("--engine", type=PATH)
@click.option("--images", default=2000, show_default=True)
@click.option("--many", default=20_000, show_default=True, help="For the memory.")
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=PATH)
@click.pass_context
def main(
    context: click.Context,
    engine: Path | None,
    images: int,
    many: int,
    batch: int,
    rounds: int,
    output: Path | None,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if engine is None or output is None:
        raise click.UsageError("--engine and --output are needed")
    sidecar = read_sidecar(engine)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photos"
        _fill(source, images)
        measured = [{kind: _run(kind, engine, source, batch) for kind in KINDS}
                    for _ in range(rounds)]  # fmt: skip
        few_mb = median(found["embed"]["peak_mb"] for found in measured)
        _fill(source, many)
        many_mb = _run("embed", engine, source, batch)["peak_mb"]
    rates = {kind: [found[kind]["images_per_s"] for found in measured] for kind in KINDS}
    bounds = [1 / (1 / found["engine"]["images_per_s"] + 1 / found["decode"]["images_per_s"])
              for found in measured]  # fmt: skip
    record = {
        "command": f"python benchmarks/bulk.py --engine {engine.name} --images {images} "
        f"--many {many} --batch {batch} --rounds {rounds} --output F",
        "machine": [f"{row.name}: {row.detail}" for row in examine().rows if row.area == "cpu"],
        "engine": engine.name,
        "engine_sha256": sidecar.sha256 if sidecar else "",
        "images": images,
        "batch": batch,
        "photo": list(SIZE),
        "images_per_s": rates,
        "cpu_ms_per_image": {
            kind: [found[kind]["cpu_ms_per_image"] for found in measured] for kind in KINDS
        },
        "share_of_bound": sorted(
            rate / bound for rate, bound in zip(rates["embed"], bounds, strict=True)
        ),
        "of_plain": sorted(
            rate / plain for rate, plain in zip(rates["embed"], rates["plain"], strict=True)
        ),
        "peak_mb": {str(images): few_mb, str(many): many_mb},
    }
    write_text(output, to_json(record))
    click.echo(to_json(record))


@main.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("engine", type=PATH)
@click.argument("source", type=PATH)
@click.argument("batch", type=int)
def one(kind: str, engine: Path, source: Path, batch: int) -> None:
    """One measurement, as JSON. Without the start: from the end of the first batch on."""
    count = sum(1 for _ in entries([str(source)]))
    clock = _Clock()
    if kind == "embed":
        output = source.with_name(f"{os.getpid()}.parquet")
        embed([str(source)], output, engine, Wishes(batch=batch), watch=clock.batch)
        clock.stop()
    else:
        with open_engine(engine, Wishes(batch=batch)) as session:
            preprocessing = session.metadata.card.preprocessing
            crop = preprocessing.crop
            zeros = np.zeros((batch, 3, crop, crop), np.float32)
            session.warm_up([zeros.shape])
            if kind == "engine":
                for start in range(0, count, batch):
                    session.run(zeros)
                    clock.batch(start + batch)
            elif kind == "decode":
                decoder = Decoder(preprocessing, (crop, crop), os.cpu_count() or 1)
                done = 0
                for found in decoder.batches(entries([str(source)]), batch):
                    done += len(found.ids)
                    clock.batch(done)
                decoder.close()
            else:
                paths = [entry.location for entry in entries([str(source)])]
                for start in range(0, count, batch):
                    tensors = [to_tensor(load_image(path), preprocessing)
                               for path in paths[start : start + batch]]  # fmt: skip
                    session.run(np.stack(tensors))
                    clock.batch(start + batch)
            clock.stop()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(
        json.dumps(
            {
                "images_per_s": (count - clock.first) / clock.wall,
                "cpu_ms_per_image": clock.cpu * 1e3 / (count - clock.first),
                "peak_mb": peak,
            }
        )
    )


class _Clock:
    """Wall and processor seconds between the first batch and the end."""

    def __init__(self) -> None:
        self.first = 0
        self.wall = self.cpu = 0.0

    def batch(self, done: int, *_more: int) -> None:
        if done and not self.first:
            self.first = done
            self._begun = time.monotonic(), time.process_time()

    def stop(self) -> None:
        wall, cpu = self._begun
        self.wall, self.cpu = time.monotonic() - wall, time.process_time() - cpu


def _run(kind: str, engine: Path, source: Path, batch: int) -> dict[str, float]:
    words = [sys.executable, __file__, "one", kind, str(engine), str(source), str(batch)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def _fill(folder: Path, count: int) -> None:
    """Bring the folder to `count` files."""
    folder.mkdir(exist_ok=True)
    distinct = min(count, DISTINCT)
    for number, crop in enumerate(photos.crops("test", distinct, 0)):
        path = folder / f"{number:07d}.jpg"
        if not path.exists():
            photos.load(crop).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
    for number in range(distinct, count):
        path = folder / f"{number:07d}.jpg"
        if not path.exists():
            path.hardlink_to(folder / f"{number % distinct:07d}.jpg")


if __name__ == "__main__":
    main()
