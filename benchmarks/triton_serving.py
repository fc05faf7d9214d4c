"""How much of an engine's speed is left behind Triton's Python backend.

    make triton-venv
    python benchmarks/triton_serving.py --engine build/rest_lite.int8.openvino.onnx --output F.json

Run it alone on the machine: server, engine and clients share its cores. In rounds, in turn:

- raw: `Session` in this process, one image and the largest batch at a time; and `Classifier` on
  files, the largest batch at a time;
- tensors: N clients over HTTP, each sends one image of 600 kB (224x224) after another, binary;
- files: the same with JPEG files to the ensemble, which decodes, prepares and ranks.

Every answer is compared with the engine's own. Clients are threads of this process, on the loopback
address: what they cost is part of the figures, as it would be of a client on the same machine.
"""

from __future__ import annotations

import http.client
import io
import itertools
import json
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy import photos
from rest_deploy.artifact import sha256_file, to_json, write_text
from rest_deploy.bench import environment
from rest_deploy.bench.statistics import paired_ratio, percentile
from rest_deploy.errors import VerificationError
from rest_deploy.preprocess import load_image, to_tensor
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.session import Session
from rest_deploy.serve import triton
from rest_deploy.serve.triton_models import IMAGE_BYTES, Wishes
from rest_deploy.serve.triton_server import HOST, Server, find

PATH = click.Path(path_type=Path)
Float32 = npt.NDArray[np.float32]
IMAGES = 64
CLOSE = 2e-2
"""Of logits: batches of another size may run other kernels, and INT8 rounds to another step."""

NAME = "engine"


@dataclass
class Way:
    """run: sends `images` images and returns the ms of each request. base: of the ratio. Counts: of
    the engine's runs in the server, and of the images in them."""

    name: str
    images: int
    run: Callable[[], list[float]]
    base: str
    clients: int = 1
    model: str = ""
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    executions: int = 0
    inferences: int = 0


class Client:
    """One connection that is kept; the protocol is KServe's v2 with binary tensors."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=60)

    def ask(self, model: str, body: bytes, header: int) -> Float32:
        """The logits, (classes,). Raises `VerificationError` for another status than 200."""
        self._connection.request(
            "POST", f"/v2/models/{model}/infer", body,
            {"Inference-Header-Content-Length": str(header)},
        )  # fmt: skip
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise VerificationError(f"{model}: HTTP {answer.status} {content[:200]!r}")
        described = json.loads(content[: int(answer.headers["Inference-Header-Content-Length"])])
        (output,) = described["outputs"]
        size = output["parameters"]["binary_data_size"]
        return np.frombuffer(content[-size:], np.float32)

    def close(self) -> None:
        self._connection.close()


def tensor_body(name: str, image: Float32) -> tuple[bytes, int]:
    return _body(name, "FP32", (1, *image.shape), image.tobytes())


def file_body(content: bytes) -> tuple[bytes, int]:
    return _body(IMAGE_BYTES, "BYTES", (1, 1), struct.pack("<I", len(content)) + content)


def _body(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> tuple[bytes, int]:
    header = msgspec.json.encode({
        "inputs": [{"name": name, "datatype": datatype, "shape": shape,
                    "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    })  # fmt: skip
    return header + data, len(header)


def load(
    port: int, model: str, bodies: Sequence[tuple[bytes, int]], right: Float32, clients: int,
    requests: int,
) -> list[float]:  # fmt: skip
    """ms of each request, from `clients` that each send the next when the last was answered."""
    turn = itertools.count()

    def work(_: int) -> list[float]:
        client, found = Client(port), []
        while (number := next(turn)) < requests:
            index = number % len(bodies)
            started = time.perf_counter()
            logits = client.ask(model, *bodies[index])
            found.append((time.perf_counter() - started) * 1e3)
            check(logits, right[index])
        client.close()
        return found

    with ThreadPoolExecutor(clients) as pool:
        return [ms for found in pool.map(work, range(clients)) for ms in found]


def check(logits: Float32, right: Float32) -> None:
    """Raises `VerificationError` for an answer that is not the engine's."""
    distance = float(np.linalg.norm(logits - right) / np.linalg.norm(right))
    if not distance <= CLOSE:
        raise VerificationError(f"an answer is off by {distance:.1%} of the engine's")


def raw(session: Session, images: Float32, right: Float32, batch: int, count: int) -> list[float]:
    found = []
    for start in range(0, count, batch):
        chosen = [index % len(images) for index in range(start, start + batch)]
        part = images[chosen]
        started = time.perf_counter()
        logits = session.run(part)
        found.append((time.perf_counter() - started) * 1e3)
        for row, index in zip(logits, chosen, strict=True):
            check(row, right[index])
    return found


def raw_files(
    classifier: Classifier, files: Sequence[bytes], batch: int, count: int
) -> list[float]:
    found = []
    for start in range(0, count, batch):
        part = [files[index % len(files)] for index in range(start, start + batch)]
        started = time.perf_counter()
        classifier.classify_batch(part)
        found.append((time.perf_counter() - started) * 1e3)
    return found


@click.command()
@click.option("--engine", type=PATH, required=True)
@click.option("--output", type=PATH, required=True)
@click.option("--venv", type=PATH, help="[default: $REST_DEPLOY_TRITON_VENV or .triton-venv]")
@click.option("--threads", type=int, help="Of the engine, here and there. [default: all cores]")
@click.option("--max-batch", type=int, default=8, show_default=True)
@click.option("--max-delay-ms", type=float, default=2.0, show_default=True)
@click.option("--clients", default="1,16,64", show_default=True)
@click.option("--requests", type=int, default=256, show_default=True, help="A way and round.")
@click.option("--rounds", type=int, default=12, show_default=True)
def main(
    engine: Path, output: Path, venv: Path | None, threads: int | None, max_batch: int,
    max_delay_ms: float, clients: str, requests: int, rounds: int,
) -> None:  # fmt: skip
    """Measure, and write a record."""
    here = environment.examine()
    requests -= requests % max_batch
    counts = [int(word) for word in clients.split(",")]
    with tempfile.TemporaryDirectory() as folder, Session.open(engine, threads=threads) as session:
        files = [_jpeg(crop) for crop in photos.crops("test", IMAGES, 0)]
        card = session.metadata.card.preprocessing
        images = np.stack([to_tensor(load_image(content), card) for content in files])
        side = card.crop
        session.warm_up([(1, 3, side, side), (max_batch, 3, side, side)])
        right = np.concatenate([session.run(image[None]) for image in images])
        wishes = Wishes(name=NAME, threads=threads, max_batch=max_batch, max_delay_ms=max_delay_ms)
        root = Path(folder) / "models"
        whole = triton.write(engine, root, wishes, backend="python").whole
        tensors = [tensor_body(session.metadata.input_name, image) for image in images]
        bodies = [file_body(content) for content in files]
        classifier = Classifier(session)
        with Server(find(venv), root, log=Path(folder) / "log") as server:
            largest = f"raw, {max_batch} images"
            ways = [
                Way("raw, 1 image", requests,
                    lambda: raw(session, images, right, 1, requests), largest),
                Way(largest, requests,
                    lambda: raw(session, images, right, max_batch, requests), largest),
                Way(f"raw, {max_batch} files", requests,
                    lambda: raw_files(classifier, files, max_batch, requests), largest),
            ]  # fmt: skip
            for count in counts:
                for name, model, sent in (("tensors", NAME, tensors), ("files", whole, bodies)):
                    ways.append(Way(
                        f"{name}, {count} clients", requests,
                        lambda model=model, sent=sent, count=count: load(  # type: ignore[misc]
                            server.http, model, sent, right, count, requests),
                        largest if name == "tensors" else ways[2].name, count, model,
                    ))  # fmt: skip
            measure(ways, server, rounds)
    rows = [row(way, ways) for way in ways]
    record = {
        "command": f"python benchmarks/triton_serving.py --engine {engine.name} "
        f"--max-batch {max_batch} --max-delay-ms {max_delay_ms:g} --clients {clients} "
        f"--requests {requests} --rounds {rounds}"
        + (f" --threads {threads}" if threads else "")
        + " --output F.json",
        "environment": here,
        "engine": engine.name,
        "engine_sha256": sha256_file(engine),
        "rows": rows,
    }
    write_text(output, to_json(record))
    for found in rows:
        ratio = f", {found['ratio'][0]:.2f} of {found['base']}" if found["ratio"] else ""
        click.echo(f"{found['way']:22} {found['images_per_second']:7.1f} images/s{ratio}")


def measure(ways: list[Way], server: Server, rounds: int) -> None:
    """The first round warms up and is dropped."""
    for number in range(rounds + 1):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            before = _counts(server)
            started = time.perf_counter()
            latencies = way.run()
            seconds = time.perf_counter() - started
            if number == 0:
                continue
            after = _counts(server)
            way.rates.append(way.images / seconds)
            way.latencies += latencies
            way.executions += after[0] - before[0]
            way.inferences += after[1] - before[1]


def _counts(server: Server) -> tuple[int, int]:
    """Executions and inferences of the engine so far."""
    found = server.get(f"/v2/models/{NAME}/stats")["model_stats"][0]
    return found["execution_count"], found["inference_count"]


def row(way: Way, ways: list[Way]) -> dict[str, Any]:
    """ratio: of rates to the base's in the same rounds, with its 95 % interval."""
    base = next(other for other in ways if other.name == way.base)
    # Of rates, so the other way round than of times: how many times as many images as the base.
    ratio = None if base is way else paired_ratio(way.rates, base.rates)
    ordered = sorted(way.latencies)
    return {
        "way": way.name,
        "clients": way.clients,
        "images_per_second": float(np.median(way.rates)),
        "rates": way.rates,
        "base": way.base,
        "ratio": ratio,
        "requests": len(ordered),
        "latency_ms": {f"p{percent}": percentile(ordered, percent) for percent in (50, 95, 99)},
        "mean_batch": way.inferences / way.executions if way.executions else None,
    }


def _jpeg(crop: photos.Crop) -> bytes:
    stream = io.BytesIO()
    photos.load(crop).save(stream, "JPEG", quality=90)
    return stream.getvalue()


if __name__ == "__main__":
    main()
