"""The service on Ray Serve: a replica without Ray, and all of it where there is Ray."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from rest_deploy.errors import InputError, OutputError, installed
from rest_deploy.runtime.session import Session
from rest_deploy.serve.ray_app import DEPLOYMENT, RaySettings, Replica, _check_port, config
from rest_deploy.serve.settings import Settings
from tests.test_cli import done, refused, run

pytest.importorskip("starlette")

CLONE = Path(__file__).resolve().parents[2]
VARIABLE = "REST_DEPLOY_RAY_PYTHON"
Float32 = npt.NDArray[np.float32]
Answer = tuple[int, dict[str, str], bytes]


def settings(engine: Path | str, **changes: Any) -> RaySettings:
    service = Settings(engine=str(engine), loading=False, threads=1)
    return RaySettings(service=service, **changes)


def binary(images: Float32) -> tuple[dict[str, str], bytes]:
    """Headers and body of an inference with tensors in binary, both ways."""
    tensor = {
        "name": "image", "shape": list(images.shape), "datatype": "FP32",
        "parameters": {"binary_data_size": images.nbytes},
    }  # fmt: skip
    head = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(text))}
    return headers, text + images.tobytes()


def logits(answer: Answer) -> Float32:
    _, headers, body = answer
    end = int(headers["inference-header-content-length"])
    shape = json.loads(body[:end])["outputs"][0]["shape"]
    return np.frombuffer(body[end:], np.float32).reshape(shape)


def images(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(size=(count, 3, 64, 64)).astype(np.float32)


def photo() -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


# --- a replica without Ray -----------------------------------------------------------------------


class Asked:
    """What of Starlette's request Serve hands to a replica."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        raw = [(key.encode(), value.encode()) for key, value in headers.items()]
        self.scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": [*raw, (b"content-length", b"%d" % len(body))],
            "root_path": "", "scheme": "http", "http_version": "1.1",
        }  # fmt: skip
        self._body = body

    async def body(self) -> bytes:
        return self._body


@pytest.fixture(scope="module")
def replica(trained_nano: Path) -> Iterator[Replica]:
    made = Replica(msgspec.to_builtins(settings(trained_nano).service))
    yield made
    made.service.close()


def ask(
    replica: Replica, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    asked = Asked("GET" if body is None else "POST", path, headers or {}, body or b"")
    response = asyncio.run(replica(asked))  # type: ignore[arg-type]
    found = {key.decode(): value.decode() for key, value in response.raw_headers}
    return response.status_code, found, bytes(response.body)


def check_service(ask: Any, engine: Path) -> None:
    """What holds of a replica and of Serve's whole."""
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/rest_nano/ready"):
        assert ask(path)[0] == 200
    head, body = binary(images(3))
    answer = ask("/v2/models/rest_nano/infer", body, head)
    assert answer[0] == 200
    with Session.open(engine) as session:
        expected = session.run(images(3))
        assert np.abs(logits(answer) - expected).max() < 1e-4
    text = {"inputs": [{"name": "image", "shape": [1, 3, 32, 32], "datatype": "FP32",
                        "data": [0.5] * 3072}]}  # fmt: skip
    status, _, body = ask("/v2/models/rest_nano/infer", json.dumps(text).encode())
    assert (status, json.loads(body)["outputs"][0]["shape"]) == (200, [1, 22])
    status, _, body = ask("/classify", photo())
    assert (status, len(json.loads(body)["predictions"])) == (200, 5)
    assert ask("/classify", b"no image")[0] == 400
    assert ask("/embed", photo())[0] == 409
    assert ask("/v2/models/else/infer", b"{}")[0] == 404
    broken = images(1)
    broken[0, 0, 0, 0] = np.nan
    head, body = binary(broken)
    status, _, said = ask("/v2/models/rest_nano/infer", body, head)
    assert (status, "NaN" in json.loads(said)["error"]) == (400, True)
    assert ask("/v2/repository/models/rest_nano/load", b"")[0] == 403


def test_replica(replica: Replica, trained_nano: Path) -> None:
    check_service(lambda *words: ask(replica, *words), trained_nano)
    replica.check_health()


def check_several(ask: Any, engine: Path) -> None:
    """What holds of an engine of every output from pixels, of a replica and of Serve's whole."""
    with Session.open(engine) as session:
        name, pixels = session.metadata.variant, np.array(Image.open(io.BytesIO(photo())))[None]
        expected = session.run_all(pixels)
    status, _, body = ask("/classify", photo())
    assert (status, len(json.loads(body)["predictions"])) == (200, 5)
    status, _, body = ask("/embed", photo())
    assert status == 200
    assert np.linalg.norm(json.loads(body)["embedding"]) == pytest.approx(1, abs=1e-4)
    tensor = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8",
              "data": pixels.ravel().tolist()}  # fmt: skip
    path = next(
        f"/v2/models/{name}/infer"
        for name in (engine.name.partition(".")[0], name)
        if ask(f"/v2/models/{name}/ready")[0] == 200
    )
    for asked in ([], ["embedding", "c4"]):
        request = {"inputs": [tensor], "outputs": [{"name": one} for one in asked]}
        status, _, body = ask(path, json.dumps(request).encode())
        assert status == 200, body
        found = {one["name"]: one for one in json.loads(body)["outputs"]}
        assert list(found) == (asked or list(expected))
        for one, given in found.items():
            actual = np.array(given["data"]).reshape(given["shape"])
            assert np.abs(actual - expected[one]).max() < 1e-4 * np.abs(expected[one]).max()


def test_replica_of_several_outputs(pixels_nano: Path) -> None:
    made = Replica(msgspec.to_builtins(settings(pixels_nano).service))
    try:
        check_several(lambda *words: ask(made, *words), pixels_nano)
    finally:
        made.service.close()


def test_replica_that_is_not_ready(trained_nano: Path) -> None:
    made = Replica(msgspec.to_builtins(settings(trained_nano).service))
    made.service.close()
    with pytest.raises(RuntimeError, match="not ready"):
        made.check_health()


# --- settings and config -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "3 to 2 replicas"),
        ({"max_replicas": 0, "min_replicas": 0}, "0 to 0 replicas"),
        ({"ongoing": 64}, "it would never come"),
    ],
)
def test_bounds_that_do_not_fit(changes: dict[str, int], words: str) -> None:
    settings("e.onnx")
    with pytest.raises(InputError, match=words):
        settings("e.onnx", **changes)


def test_loading_in_place_is_refused() -> None:
    with pytest.raises(InputError, match="do not load engines in place"):
        RaySettings(service=Settings(engine="e.onnx"))


def test_config_says_all_of_the_settings() -> None:
    wanted = settings("/m/e.onnx", min_replicas=0, max_replicas=4, gpus=0.5)
    found = config(wanted, "photos")
    (application,) = found["applications"]
    assert msgspec.convert(application["args"], RaySettings) == wanted
    (deployment,) = application["deployments"]
    assert deployment["name"] == DEPLOYMENT
    assert deployment["autoscaling_config"] == {
        "min_replicas": 0, "max_replicas": 4, "target_ongoing_requests": 16,
    }  # fmt: skip
    assert deployment["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0.5}


def test_dry_run_prints_the_config(trained_nano: Path) -> None:
    text = done("ray-serve", trained_nano, "--dry-run", "--max-replicas", 3, "--threads", 2)
    found = yaml.safe_load(text)
    (application,) = found["applications"]
    assert application["name"] == "rest_nano"
    assert application["args"]["service"]["engine"] == str(trained_nano)
    assert application["deployments"][0]["ray_actor_options"] == {"num_cpus": 2}


def test_what_ray_serve_refuses(tmp_path: Path, trained_nano: Path) -> None:
    refused(run("ray-serve", tmp_path / "no.onnx"), 3, "is not there")
    if not installed("ray"):
        refused(run("ray-serve", trained_nano), 4, "pip install 'rest-deploy[ray]'")


def test_a_port_that_is_taken() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        service = Settings(engine="e.onnx", port=held.getsockname()[1])
        with pytest.raises(OutputError, match="cannot listen"):
            _check_port(service)


# --- live ----------------------------------------------------------------------------------------


@pytest.fixture
def python() -> str:
    found = os.environ.get(VARIABLE) or (sys.executable if installed("ray") else "")
    if not found:
        pytest.skip(f"no Ray here: pip install 'rest-deploy[ray]', or {VARIABLE}=its python")
    return found


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CLONE), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.slow
def test_config_is_of_rays_schema(python: str) -> None:
    code = (
        "import json, sys\n"
        "from ray.serve.schema import ServeDeploySchema\n"
        "ServeDeploySchema.model_validate(json.loads(sys.argv[1]))\n"
    )
    good = config(settings("/m/e.onnx", min_replicas=1, max_replicas=4), "photos")
    wrong = json.loads(json.dumps(good))
    wrong["applications"][0]["deployments"][0]["max_ongoing_requests"] = "many"
    for found, code_expected in ((good, 0), (wrong, 1)):
        result = subprocess.run(
            [python, "-c", code, json.dumps(found)],
            capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT,
        )  # fmt: skip
        assert result.returncode == code_expected, result.stderr


@contextmanager
def serving(python: str, engine: Path) -> Iterator[Any]:
    """`ray-serve`, ready: how to ask it. Ends by SIGTERM, which must end it well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    main = "import sys; from rest_deploy.cli import main; main(sys.argv[1:])"
    words = ["ray-serve", engine, "--port", port, "--max-delay-ms", 20]
    process = subprocess.Popen(
        [python, "-c", main, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip

    def ask(path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                given = {key.lower(): value for key, value in found.headers.items()}
                return found.status, given, found.read()
        except urllib.error.HTTPError as error:
            return error.code, {}, error.read()

    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            try:
                if ask("/v2/health/ready")[0] == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield ask
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)


@pytest.mark.slow
def test_live(python: str, trained_nano: Path) -> None:
    with serving(python, trained_nano) as ask:
        check_service(ask, trained_nano)
        expected = {}
        with Session.open(trained_nano) as session:
            for seed in range(60):
                expected[seed] = session.run(images(1, seed))

        def one(seed: int) -> float:
            head, body = binary(images(1, seed))
            answer = ask("/v2/models/rest_nano/infer", body, head)
            assert answer[0] == 200, answer
            return float(np.abs(logits(answer) - expected[seed]).max())

        with ThreadPoolExecutor(16) as pool:
            assert max(pool.map(one, range(60))) < 1e-4
        figures = ask("/metrics")[2].decode()
        assert "rest_deploy_images_total" in figures


@pytest.mark.slow
def test_live_with_several_outputs(python: str, pixels_nano: Path) -> None:
    with serving(python, pixels_nano) as ask:
        check_several(ask, pixels_nano)
