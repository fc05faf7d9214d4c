"""The service against the engine it serves: throughput, latency alone, and far too many requests.

    python benchmarks/serving.py ENGINE --output benchmarks/results/serving_nano.json
    python benchmarks/serving.py ENGINE --program build/cpp/release/apps/serve --output F

--program measures the C++ service instead of `rest-deploy serve`. The raw engine is Python's
session for both: the program links the same OpenVINO and compiles for the same two batches
(--fixed), so both are held against one figure; what Python adds to a call is the raw engine's.

The raw engine runs in this process, the service and its clients each in another, in turns: raw
engine at the batch, service with many clients, raw engine on one image, service with one client,
and again. The ratio of throughputs is taken within each round. Clients use the same cores as the
service, the raw engine has them alone: the ratio is a lower bound. Then an open loop offers ten
times what the service managed.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import psutil

from rest_deploy.artifact import sha256_file, to_json, write_text
from rest_deploy.bench import environment
from rest_deploy.contracts import ModelMetadata
from rest_deploy.layout import layout_of
from rest_deploy.runtime.session import Session

PATH = click.Path(path_type=Path)
LOAD = Path(__file__).with_name("serving_load.py")
MOST_CONNECTIONS = 512
"""Of cpp/apps/serve."""


@click.command()
@click.argument("engine", type=PATH)
@click.option("--output", type=PATH, required=True)
@click.option("--batch", type=int, default=8, show_default=True, help="Of the raw engine, at most.")
@click.option("--clients", type=int, default=32, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of each turn.")
@click.option("--overload-seconds", type=float, default=60.0, show_default=True)
@click.option("--times", type=float, default=10.0, show_default=True, help="The capacity.")
@click.option("--overload-clients", type=int, default=400, show_default=True)
@click.option("--queue", type=int, default=64, show_default=True)
@click.option("--serve", "more", default="", help="More options of the service.")
@click.option("--program", type=PATH, help="cpp/apps/serve, built. [default: rest-deploy serve]")
def main(
    engine: Path, output: Path, batch: int, clients: int, rounds: int, seconds: float,
    overload_seconds: float, times: float, overload_clients: int, queue: int, more: str,
    program: Path | None,
) -> None:  # fmt: skip
    """Measure ENGINE and write the JSON."""
    here = environment.examine()
    # The program runs every .onnx on OpenVINO: the raw engine is the same one.
    on_openvino = program is not None and engine.suffix == ".onnx"
    session = Session.open(engine, backend="openvino" if on_openvino else None)
    side = session.metadata.card.preprocessing.crop
    session.warm_up([(count, 3, side, side) for count in dict.fromkeys((1, batch))])
    options = ["--max-batch", str(batch), "--queue", str(queue), *more.split()]
    if program is not None:
        # Each connection holds a thread there: clients beyond them would not be heard at all.
        most = max(clients, overload_clients if overload_seconds else 0) + 8
        options += ["--fixed", "--connections", str(min(most, MOST_CONNECTIONS))]
    turns: list[dict[str, Any]] = []
    with serving(engine, options, program) as (port, server):

        def load(count: int, duration: float, rate: float = 0.0) -> dict[str, Any]:
            return generated(port, session.metadata, count, duration, rate)

        load(clients, 1.0)
        for turn in range(rounds):
            raw = raw_engine(session, batch, side, seconds)
            many = processor_time(server, lambda: load(clients, seconds))
            alone = raw_engine(session, 1, side, seconds)
            one = load(1, seconds)
            turns.append({"raw": raw, "many": many, "raw_one": alone, "one": one})
            _tell(
                f"round {turn + 1}: raw {raw['per_second']:.1f}/s, service "
                f"{many['per_second']:.1f}/s ({many['per_second'] / raw['per_second']:.3f}); raw "
                f"{alone['p50_ms']:.2f} ms, one client {one['latency_ms']['p50']:.2f} ms; "
                f"processor ms an image: raw {raw['processor_ms']:.2f}, "
                f"service {many['processor_ms']:.2f}, clients {many['clients_processor_ms']:.2f}"
            )
        capacity = statistics.median(turn["many"]["per_second"] for turn in turns)
        batches = metric(port, "rest_deploy_batch_images")
        overload = None
        if overload_seconds:
            before = server.memory_info().rss
            with sampling(server) as samples:
                overload = load(overload_clients, overload_seconds, times * capacity)
            overload["rss_mb"] = {
                "before": before / 1e6,
                "most": max(samples) / 1e6,
                "every_5_s": [sample / 1e6 for sample in samples[::10]],
                "after": server.memory_info().rss / 1e6,
            }
            overload["asked_per_second"] = times * capacity
            after = load(clients, seconds)
            overload["afterwards"] = after
            _tell(f"overload: {overload['codes']}, p99 {overload['latency_ms']}, "
                  f"{overload['rss_mb']}, afterwards {after['per_second']:.1f}/s")  # fmt: skip
    ratios = [turn["many"]["per_second"] / turn["raw"]["per_second"] for turn in turns]
    added = [turn["one"]["latency_ms"]["p50"] - turn["raw_one"]["p50_ms"] for turn in turns]
    write_text(output, to_json({
        "command": f"python benchmarks/serving.py ENGINE --batch {batch} --clients {clients} "
        f"--rounds {rounds} --seconds {seconds:g} --overload-seconds {overload_seconds:g} "
        f"--times {times:g} --overload-clients {overload_clients} --queue {queue} --serve '{more}'"
        f"{f' --program {program}' if program else ''} --output F",
        "service": {"name": "cpp/apps/serve" if program else "rest-deploy serve",
                    "options": options, "program_sha256": sha256_file(program) if program else ""},
        "raw_engine": "rest_deploy.Session, in the process of the benchmark",
        "engine": {"file": engine.name, "sha256": sha256_file(engine),
                   "backend": session.runner.backend},
        "environment": msgspec.to_builtins(here),
        "served_to_raw": {"median": statistics.median(ratios), "rounds": ratios},
        "added_ms_one_client": {"median": statistics.median(added), "rounds": added},
        "batches": batches,
        "rounds": turns,
        "overload": overload,
    }))  # fmt: skip
    _tell(f"service to raw engine {statistics.median(ratios):.3f}, one client "
          f"{statistics.median(added):+.2f} ms")  # fmt: skip


def raw_engine(session: Session, batch: int, side: int, seconds: float) -> dict[str, float]:
    """One call after the other on the same images."""
    layout = layout_of(session.metadata.input_kind)
    images = np.random.default_rng(0).standard_normal(layout.shape((batch, 3, side, side)))
    images = (images * 50 + 128).clip(0, 255) if layout.dtype == "uint8" else images
    images = images.astype(layout.dtype)
    taken = []
    own, begin = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        session.run(images)
        taken.append(time.perf_counter() - now)
    return {
        "per_second": batch * len(taken) / sum(taken),
        "p50_ms": statistics.median(taken) * 1e3,
        "calls": len(taken),
        "processor_ms": (time.process_time() - own) * 1e3 / (batch * len(taken)),
    }


def processor_time(server: psutil.Process, load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """With the processor time of an image in the service and in its clients: unlike the ratio of
    throughputs it hardly depends on what else runs."""
    before = sum(server.cpu_times()[:2])
    found = load()
    images = found["codes"].get("200", 0)
    own = sum(server.cpu_times()[:2]) - before
    clients = found["processor_s"]
    return {
        **found,
        "processor_ms": own * 1e3 / images,
        "clients_processor_ms": clients * 1e3 / images,
    }


def generated(
    port: int, metadata: ModelMetadata, clients: int, seconds: float, rate: float
) -> dict[str, Any]:
    """For the first output, as `raw_engine` asks for it."""
    command = [
        sys.executable, str(LOAD), "--port", str(port), "--model", metadata.card.name, "--output",
        metadata.output_name, "--side", str(metadata.card.preprocessing.crop), "--clients",
        str(clients), "--seconds", str(seconds), "--rate", str(rate),
        *(["--pixels"] if metadata.input_kind == "uint8" else []),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def serving(
    engine: Path, options: list[str], program: Path | None
) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of a service that is ready."""
    words = [str(program)] if program else [sys.executable, "-m", "rest_deploy.cli", "serve"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen([*words, str(engine), "--port", "0", *options],
                                       stdout=stream, stderr=stream)  # fmt: skip
        try:
            while (port := _port(log, cpp=program is not None)) is None:
                if process.poll() is not None:
                    raise RuntimeError(f"the service ended: {log.read_text()}")
                time.sleep(0.05)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            code = process.wait(60)
        if code != 0:
            raise RuntimeError(f"the service ended with {code}: {log.read_text()[-2000:]}")


def _port(log: Path, *, cpp: bool) -> int | None:
    """Of a service that says it is ready; None before."""
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]  # the last one may be half
    if cpp:
        found = re.search(r"^serving .* on http://[^:]+:(\d+)$", "\n".join(lines), re.MULTILINE)
        return int(found[1]) if found else None
    events = {line.get("event"): line for line in map(json.loads, lines)}
    return int(events["listening"]["port"]) if "ready" in events else None


@contextmanager
def sampling(process: psutil.Process) -> Iterator[list[int]]:
    """Its resident bytes, twice a second."""
    samples, done = [process.memory_info().rss], threading.Event()

    def sample() -> None:
        while not done.wait(0.5):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def metric(port: int, name: str) -> dict[str, float]:
    """A histogram's buckets by upper bound, cumulative."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith(f"{name}_bucket"):
            bound = line.split('le="')[1].split('"')[0]
            found[bound] = float(line.rsplit(" ", 1)[1])
    return found


def _tell(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
