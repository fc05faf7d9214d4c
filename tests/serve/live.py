"""A server in a process of its own, and clients for it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rest_deploy import Session
from rest_deploy.artifact import sha256_file

Float32 = npt.NDArray[np.float32]
WAIT = 60.0
"""Seconds until a test gives up."""

SIDE = 64
"""Of the images of most tests: small, so that they are quick."""


@dataclass
class Live:
    """A running `rest-deploy serve`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """What it logged; a line that is no JSON fails the test."""
        text = self.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]  # the last one may be half

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == name]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The line of that request; another thread writes it."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [one for one in self.events("request") if one["request_id"] == request_id]
            return bool(found)

        eventually(there, self)
        (line,) = found
        return line

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = WAIT,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            # Refused before all of it was sent: the answer is there.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def infer(self, images: Float32, **more: Any) -> Reply:
        body, length = inference(images, **more)
        return self.ask("POST", INFER, body, {"Inference-Header-Content-Length": str(length)})

    def ready(self) -> bool:
        try:
            return self.ask("GET", "/v2/health/ready", timeout=5).status == 200
        except OSError:
            return False

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        text = self.ask("GET", "/metrics").body.decode()
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.split("{")[0].split(" ")[0] == name
        ]
        assert found, f"no {name} in\n{text}"
        return sum(found)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(WAIT)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return {key.lower(): value for key, value in self.headers.items()}.get(name)


INFER = "/v2/models/rest_nano/infer"


def inference(images: Float32, **more: Any) -> tuple[bytes, int]:
    """A binary request, and the length of its header. more: top-level fields."""
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape),
              "parameters": {"binary_data_size": images.nbytes}}  # fmt: skip
    header = json.dumps({"inputs": [tensor], **more}).encode()
    return header + images.tobytes(), len(header)


def random_images(count: int = 1, side: int = SIDE, seed: int = 0) -> Float32:
    dice = np.random.default_rng(seed)
    return dice.standard_normal((count, 3, side, side)).astype(np.float32)


@contextmanager
def serving(engine: Path, log: Path, *options: object, wait: bool = True) -> Iterator[Live]:
    """Started, ready, and killed at the end if it still runs."""
    command = [sys.executable, "-m", "rest_deploy.cli", "serve", str(engine), "--port", "0",
               "--threads", "1", *map(str, options)]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream, start_new_session=True)
    try:
        live = Live(process, 0, log)
        eventually(lambda: bool(live.events("listening")), live)
        live.port = live.events("listening")[0]["port"]
        if wait:
            eventually(live.ready, live)
        yield live
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT)


def eventually(condition: Callable[[], bool], live: Live | None = None) -> None:
    """Wait until it holds, and while the server runs."""
    deadline = time.monotonic() + WAIT
    while not condition():
        if live is not None:
            said = live.log.read_text(encoding="utf-8")
            assert live.process.poll() is None, f"it ended: {live.process.returncode}\n{said}"
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@dataclass
class Load:
    """Clients that ask all the time, each on a connection of its own, and what came back.

    `broken`: connections that ended without an answer to a request that was sent whole; a
    connection that is refused or closed before that is opened again.
    """

    live: Live
    clients: int = 4
    codes: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    logits: list[Float32] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client) for _ in range(self.clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT)

    def check(self, *engines: Path) -> None:
        """Every answer was 200, with the logits of the engine whose hash it carries; each of the
        engines gave some."""
        expected = {
            sha256_file(path)[:12]: Session.open(path, threads=1).run(random_images())[0]
            for path in engines
        }
        assert set(self.codes) == {200}
        assert self.broken == []
        assert set(self.engines) == set(expected)
        for engine, logits in zip(self.engines, self.logits, strict=True):
            # Rounding depends on the size of the batch.
            np.testing.assert_allclose(logits, expected[engine], rtol=1e-3, atol=1e-3)

    def reach(self, count: int) -> None:
        """Wait until so many more answers came."""
        aim = len(self.codes) + count
        eventually(lambda: len(self.codes) >= aim, self.live)

    def _client(self) -> None:
        body, length = inference(random_images())
        headers = {"Inference-Header-Content-Length": str(length)}
        connection = http.client.HTTPConnection("127.0.0.1", self.live.port, timeout=WAIT)
        while not self._stop.is_set():
            try:
                connection.request("POST", INFER, body, headers)
            except OSError:
                connection.close()
                time.sleep(0.02)
                continue
            try:
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._lock:
                    self.broken.append(repr(error))
                continue
            with self._lock:
                self.codes.append(answer.status)
                if answer.status == 200:
                    data = json.loads(content)["outputs"][0]["data"]
                    self.logits.append(np.array(data, np.float32))
                    self.engines.append(answer.getheader("x-model-sha256") or "")
        connection.close()
