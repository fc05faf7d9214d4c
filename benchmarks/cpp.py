"""From an image file to logits, in C++ and in Python: the same model, files and threads, in turn.

    make test-cpp
    python benchmarks/cpp.py MODEL.onnx --output F.json

Both run OpenVINO with the card's shape compiled (classify --fixed; Session.warm_up). A round is
every photo `repeat` times in one and then in the other, the order exchanged from round to round;
the first call for each photo is not counted. The ratio is that of medians, Python's over C++'s; its
range is over the rounds.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import numpy as np

from rest_deploy.artifact import sha256_file, to_json, write_text
from rest_deploy.bench import environment
from rest_deploy.errors import InvariantError, MissingDependencyError, RestDeployError, require
from rest_deploy.photos import PHOTOS
from rest_deploy.preprocess import load_image, to_tensor
from rest_deploy.runtime.session import Session

PATH = click.Path(path_type=Path)
PROGRAM = Path(__file__).parents[1] / "build" / "cpp" / "release" / "apps" / "classify"
STAGES = ("decode", "preprocess", "inference", "total")
Medians = dict[str, float]
"""Milliseconds by stage."""


def photos() -> list[Path]:
    require("skimage", "demo")
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    return [folder / photo.file for photo in PHOTOS]


def in_cpp(model: Path, images: list[Path], repeat: int, threads: int) -> Medians:
    command = [PROGRAM, model, *images, "--repeat", repeat, "--threads", threads]
    done = subprocess.run(
        [*map(str, command), "--fixed", "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise InvariantError(f"classify ended with {done.returncode}: {done.stderr.strip()}")
    found = json.loads(done.stdout)["latency_ms"]
    return {stage: found[stage]["median"] for stage in STAGES}


def in_python(session: Session, images: list[Path], repeat: int) -> Medians:
    how = session.metadata.card.preprocessing
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for path in images:
        for turn in range(repeat + 1):
            marks = [time.perf_counter()]
            image = load_image(path)
            marks.append(time.perf_counter())
            tensor = to_tensor(image, how)
            marks.append(time.perf_counter())
            session.run(tensor[None])
            marks.append(time.perf_counter())
            if turn > 0:
                for stage, start, end in zip(STAGES, marks, marks[1:], strict=False):
                    times[stage].append((end - start) * 1e3)
                times["total"].append((marks[-1] - marks[0]) * 1e3)
    return {stage: float(np.median(samples)) for stage, samples in times.items()}


def measure(
    cpp: Callable[[], Medians], python: Callable[[], Medians], rounds: int
) -> dict[str, list[Medians]]:
    found: dict[str, list[Medians]] = {"cpp": [], "python": []}
    for number in range(rounds):
        turns = [("cpp", cpp), ("python", python)]
        for name, run in turns if number % 2 == 0 else reversed(turns):
            found[name].append(run())
        click.echo(f"round {number + 1} of {rounds}", err=True)
    return found


def summary(found: dict[str, list[Medians]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for stage in STAGES:
        cpp, python = ([row[stage] for row in found[name]] for name in ("cpp", "python"))
        ratios = [slow / fast for slow, fast in zip(python, cpp, strict=True)]
        rows.append(
            {
                "stage": stage,
                "cpp_ms": float(np.median(cpp)),
                "python_ms": float(np.median(python)),
                "ratio": float(np.median(python) / np.median(cpp)),
                "ratio_range": [min(ratios), max(ratios)],
            }
        )
    return rows


@click.command()
@click.argument("model", type=PATH)
@click.option("--output", type=PATH, required=True)
@click.option("--rounds", type=click.IntRange(min=1), default=10)
@click.option("--repeat", type=click.IntRange(min=1), default=5)
@click.option("--threads", type=click.IntRange(min=1), default=2)
def main(model: Path, output: Path, rounds: int, repeat: int, threads: int) -> None:
    """Measure, print a table and write the JSON."""
    if not PROGRAM.is_file():
        raise MissingDependencyError(f"{PROGRAM} is not built", hint="make test-cpp")
    images = photos()
    here = environment.examine()
    with Session.open(model, backend="openvino", threads=threads) as session:
        crop = session.metadata.card.preprocessing.crop
        session.warm_up([(1, 3, crop, crop)])
        found = measure(
            lambda: in_cpp(model, images, repeat, threads),
            lambda: in_python(session, images, repeat),
            rounds,
        )
    rows = summary(found)
    for row in rows:
        click.echo(
            f"{row['stage']:10}  C++ {row['cpp_ms']:8.3f} ms  Python {row['python_ms']:8.3f} ms  "
            f"ratio {row['ratio']:.2f}"
        )
    report = {
        "command": f"python benchmarks/cpp.py MODEL --rounds {rounds} --repeat {repeat} "
        f"--threads {threads} --output F",
        "model": model.name,
        "sha256": sha256_file(model),
        "images": len(images),
        "environment": msgspec.to_builtins(here),
        "rows": rows,
        "rounds": found,
    }
    write_text(output, to_json(report))


if __name__ == "__main__":
    try:
        main()
    except RestDeployError as error:
        raise SystemExit(f"error: {error}") from error
