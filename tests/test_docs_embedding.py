"""The service in docs/embedding.md, run as it stands there."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rest_deploy.runtime.classifier import Classifier

CLONE = Path(__file__).resolve().parents[1]
PAGE = CLONE / "docs" / "embedding.md"


def block() -> str:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def service(
    trained_nano: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    """Its address, and stopped by Ctrl-C as a person would."""
    folder = tmp_path_factory.mktemp("service")
    file = folder / "service.py"
    # One request of each kind at a time, so that a few are already too many.
    text = block().replace("WAITING = 32", "WAITING = 1").replace("AT_ONCE = 2", "AT_ONCE = 1")
    assert text != block()
    file.write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(file), str(trained_nano), "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CLONE)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    killer = threading.Timer(120, process.kill)
    killer.start()
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)\n", said)
    if found is None:
        process.kill()
        pytest.fail(f"{said}{process.communicate()[1]}")
    yield found[1], int(found[2])
    process.send_signal(signal.SIGINT)
    process.wait(30)
    killer.cancel()
    assert process.returncode == 0


def ask(
    service: tuple[str, int], method: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*service, timeout=60)
    connection.request(method, "/", body, headers)
    answer = connection.getresponse()
    found = (answer.status, json.loads(answer.read()))
    connection.close()
    return found


def photo(side: int = 300) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def test_it_answers_as_the_classifier(service: tuple[str, int], trained_nano: Path) -> None:
    status, found = ask(service, "POST", photo())
    assert status == 200
    expected = Classifier.open(trained_nano).classify(photo(), top=3)
    assert list(found["labels"]) == [one.label for one in expected]
    for one in expected:
        assert abs(found["labels"][one.label] - one.probability) < 1e-4
    assert ask(service, "GET") == (200, {"ready": True})


@pytest.mark.parametrize("body", [b"nonsense", photo()[:300], photo(20)])
def test_bad_images(service: tuple[str, int], body: bytes) -> None:
    status, found = ask(service, "POST", body)
    assert status == 400
    assert "the image" in found["error"]


@pytest.mark.parametrize("length", ["0", "-1", "x", str((20 << 20) + 1), str(1 << 70)])
def test_bodies_that_are_not_read(service: tuple[str, int], length: str) -> None:
    connection = http.client.HTTPConnection(*service, timeout=60)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_too_many_at_once(service: tuple[str, int]) -> None:
    """Two may be there, one computing and one waiting; who comes later is told so."""
    large = photo(3000)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: ask(service, "POST", large)[0], range(24)))
    assert set(found) == {200, 503}
    assert ask(service, "POST", photo())[0] == 200


def test_links_of_the_page() -> None:
    for name in ("embedding.md", "triton.md"):
        page = (PAGE.parent / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
            if target.startswith("http"):
                continue
            assert (PAGE.parent / target).exists(), f"{name}: {target}"
