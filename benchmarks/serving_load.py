"""A load generator for benchmarks/serving.py, in a process of its own: sockets and threads alone.

Each client sends the same inference request over one connection, byte for byte, and reads the
answer. Closed loop: the next request follows the answer. Open loop (--rate): requests are due at
fixed times whatever the answers do, and whichever client is free sends the next one. One that no
client was free for when it was due is sent as soon as one is, and counted as late.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
import numpy.typing as npt

LATE = 0.1
"""Seconds."""


class Schedule:
    """When requests are due, shared by all clients: one that waits for an answer holds up none.
    every: seconds between requests, 0 for a closed loop, where each is due at once."""

    def __init__(self, begin: float, every: float) -> None:
        self._due, self._every = begin, every
        self.open_loop = every > 0
        self._lock = threading.Lock()

    def next(self) -> float:
        """The time of a request that is now the caller's to send."""
        with self._lock:
            due = self._due
            self._due += self._every
        return due


@dataclass
class Seen:
    """What one client saw. seconds: of each answer, by its code. late: requests sent more than
    `LATE` after they were due."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    broken: int = 0
    late: int = 0
    first: float = 0.0
    last: float = 0.0


def request(side: int, model: str, output: str, seed: int, *, pixels: bool) -> bytes:
    """A whole HTTP request for one output of one image in binary. pixels: what the model takes."""
    dice = np.random.default_rng(seed)
    image: npt.NDArray[Any]
    if pixels:
        image, datatype = dice.integers(0, 256, (1, side, side, 3), dtype=np.uint8), "UINT8"
    else:
        image, datatype = dice.standard_normal((1, 3, side, side), dtype=np.float32), "FP32"
    tensor = {"name": "image", "datatype": datatype, "shape": list(image.shape),
              "parameters": {"binary_data_size": image.nbytes}}  # fmt: skip
    wanted = {"name": output, "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost",
        f"Content-Length: {len(header) + image.nbytes}",
        f"Inference-Header-Content-Length: {len(header)}",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + header + image.tobytes()


def connect(port: int) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), timeout=120)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def answer(connection: socket.socket) -> tuple[int, bool]:
    """Read one answer: its code, and whether the connection stays. Raises `OSError`."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("closed before an answer")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:])
    left = int(fields.get(b"content-length", b"0")) - len(body)
    while left > 0:
        piece = connection.recv(min(left, 65536))
        if not piece:
            raise ConnectionError("closed within an answer")
        left -= len(piece)
    return int(lines[0].split()[1]), fields.get(b"connection") != b"close"


def client(port: int, payload: bytes, schedule: Schedule, end: float, seen: Seen) -> None:
    connection = connect(port)
    while True:
        due, now = schedule.next(), time.monotonic()
        if max(due, now) >= end:
            break
        if now < due:
            time.sleep(due - now)
        elif schedule.open_loop and now > due + LATE:
            seen.late += 1
        try:
            sent = time.monotonic()
            connection.sendall(payload)
            code, stays = answer(connection)
            done = time.monotonic()
        except OSError:
            seen.broken += 1
            stays = False
        else:
            seen.seconds.setdefault(code, []).append(done - sent)
            seen.first = seen.first or sent
            seen.last = done
        if not stays:
            connection.close()
            connection = connect(port)
    connection.close()


def summary(found: list[Seen], seconds: float, *, open_loop: bool) -> dict[str, Any]:
    """Counts by code, and latencies of answers with 200 in milliseconds. Answers a second: until
    the last one came; offered: of an open loop, while requests were due."""
    by_code: dict[int, list[float]] = {}
    for seen in found:
        for code, values in seen.seconds.items():
            by_code.setdefault(code, []).extend(values)
    good = np.array(by_code.get(200, [])) * 1e3
    quantiles = {
        name: round(float(np.percentile(good, at)), 3)
        for name, at in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        if len(good)
    }
    span = max(seen.last for seen in found) - min(seen.first for seen in found if seen.first)
    return {
        "codes": {str(code): len(values) for code, values in sorted(by_code.items())},
        "per_second": round(len(good) / span, 3),
        "offered_per_second": round(
            sum(map(len, by_code.values())) / (seconds if open_loop else span), 3
        ),
        "latency_ms": quantiles,
        "broken": sum(seen.broken for seen in found),
        "late": sum(seen.late for seen in found),
        "seconds": seconds,
    }


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--model", required=True)
@click.option("--output", default="logits", show_default=True)
@click.option("--pixels", is_flag=True, help="The model takes uint8 (N, H, W, 3).")
@click.option("--side", type=int, default=224)
@click.option("--clients", type=int, default=32)
@click.option("--seconds", type=float, default=5.0)
@click.option("--rate", type=float, default=0.0, help="Requests a second, of all; 0: closed loop.")
def main(
    port: int, model: str, output: str, pixels: bool, side: int, clients: int,
    seconds: float, rate: float,
) -> None:  # fmt: skip
    """Send requests, print what came back as JSON."""
    found = [Seen() for _ in range(clients)]
    payloads = [
        request(side, model, output, seed, pixels=pixels) for seed in range(min(clients, 8))
    ]
    begin, own = time.monotonic() + 0.2, time.process_time()
    schedule = Schedule(begin, 1 / rate if rate else 0.0)
    threads = [
        threading.Thread(
            target=client,
            args=(port, payloads[index % len(payloads)], schedule, begin + seconds, seen),
        )
        for index, seen in enumerate(found)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(
        {**summary(found, seconds, open_loop=rate > 0), "processor_s": time.process_time() - own},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
