"""The routes of a live server, asked by the protocol's best known client and by hand."""

from __future__ import annotations

import gzip
import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rest_deploy import Classifier, Session, __version__
from tests.serve.live import INFER, Live, eventually, inference, random_images

tritonclient = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def session(trained_nano: Path) -> Session:
    return Session.open(trained_nano, threads=1)


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[Any]:
    found = tritonclient.InferenceServerClient(live.url, concurrency=8)
    yield found
    found.close()


def tensor(images: Any, *, binary: bool = True) -> Any:
    found = tritonclient.InferInput("image", list(images.shape), "FP32")
    found.set_data_from_numpy(images, binary_data=binary)
    return found


# --- tritonclient, unchanged -------------------------------------------------------------------


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("rest_nano")
    assert client.is_model_ready("rest_nano", "1")
    assert not client.is_model_ready("rest_lite")
    server = client.get_server_metadata()
    assert (server["name"], server["version"]) == ("rest-deploy", __version__)
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("rest_nano")
    assert model == client.get_model_metadata("rest_nano", "1")
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 22]}]
    assert model["parameters"]["weights"] == "checkpoint"
    (index,) = client.get_model_repository_index()
    assert (index["name"], index["state"]) == ("rest_nano", "READY")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (1, 100)])
def test_answers_are_the_engines(
    client: Any, session: Session, binary_in: bool, binary_out: bool | None, shape: tuple[int, int]
) -> None:
    images = random_images(*shape)
    outputs = None
    if binary_out is not None:
        outputs = [tritonclient.InferRequestedOutput("logits", binary_data=binary_out)]
    found = client.infer("rest_nano", [tensor(images, binary=binary_in)], outputs=outputs)
    np.testing.assert_allclose(found.as_numpy("logits"), session.run(images), rtol=1e-4, atol=1e-4)
    assert found.get_response()["model_version"] == "1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Any, session: Session, algorithm: str) -> None:
    images = random_images()
    found = client.infer(
        "rest_nano", [tensor(images)], request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm, request_id="seven",
    )  # fmt: skip
    np.testing.assert_allclose(found.as_numpy("logits"), session.run(images), rtol=1e-4, atol=1e-4)
    assert found.get_response()["id"] == "seven"


def test_classification(client: Any, session: Session) -> None:
    images = random_images(2)
    outputs = [tritonclient.InferRequestedOutput("logits", class_count=3)]
    found = client.infer("rest_nano", [tensor(images)], outputs=outputs).as_numpy("logits")
    assert found.shape == (2, 3)
    logits, labels = session.run(images), session.metadata.labels
    for row, texts in zip(logits, found.tolist(), strict=True):
        best = int(row.argmax())
        _, index, label = texts[0].decode().split(":")
        assert (int(index), label) == (best, labels[best])


def test_many_at_once_get_their_own(client: Any, session: Session) -> None:
    images = [random_images(seed=seed) for seed in range(24)]
    waiting = [client.async_infer("rest_nano", [tensor(one)]) for one in images]
    for one, request in zip(images, waiting, strict=True):
        expected = session.run(one)
        np.testing.assert_allclose(
            request.get_result().as_numpy("logits"), expected, rtol=1e-4, atol=1e-4
        )


def test_errors_of_the_client_say_what_was_expected(client: Any) -> None:
    with pytest.raises(tritonclient.InferenceServerException, match=r"expected \[batch, 3"):
        client.infer("rest_nano", [tensor(np.zeros((1, 3, 8, 8), np.float32))])
    with pytest.raises(tritonclient.InferenceServerException, match="1 to 4"):
        client.infer("rest_nano", [tensor(random_images(5))])
    with pytest.raises(tritonclient.InferenceServerException, match="no model 'other'"):
        client.infer("other", [tensor(random_images())])
    client.load_model("rest_nano")  # the same file: nothing is done
    with pytest.raises(tritonclient.InferenceServerException, match="got the parameters"):
        client.load_model("rest_nano", config="{}")


# --- images ------------------------------------------------------------------------------------


def encoded(kind: str = "PNG", size: tuple[int, int] = (90, 70), **options: Any) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it has so many pixels."""
    body = bytearray(encoded())
    body[16:24] = struct.pack(">II", width, height)
    body[29:33] = struct.pack(">I", zlib.crc32(body[12:29]))
    return bytes(body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_classify_is_the_classifier(live: Live, session: Session, kind: str) -> None:
    body = encoded(kind)
    reply = live.ask("POST", "/classify?top=3", body)
    assert reply.status == 200, reply.body
    expected = Classifier(session).classify(body, top=3)
    found = reply.json()["predictions"]
    assert [one["label"] for one in found] == [one.label for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probability"] == pytest.approx(other.probability, abs=1e-4)


def test_all_probabilities_add_up_to_one(live: Live) -> None:
    found = live.ask("POST", "/classify?top=999", encoded()).json()["predictions"]
    assert len(found) == 22
    assert sum(one["probability"] for one in found) == pytest.approx(1.0)


def test_embeddings_are_not_of_this_model(live: Live) -> None:
    reply = live.ask("POST", "/embed", encoded())
    assert reply.status == 409
    assert "--output embedding" in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "query", "status", "words"),
    [
        (b"", "", 400, "the body is empty"),
        (b"not an image", "", 400, "not an image"),
        (encoded()[:200], "", 400, "cannot be decoded"),
        (encoded("JPEG", (20, 40)), "", 400, "at least 32x32"),
        (bomb(1001, 1000), "", 413, "1001x1000 pixels"),
        (bomb(10_000, 9_000), "", 413, "10000x9000 pixels"),
        (bomb(30_000, 30_000), "", 413, "too large"),
        (encoded(), "?top=0", 400, "top is '0'"),
        (encoded(), "?top=two", 400, "top is 'two'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "", 400, "expected one of"),
    ],
)
def test_images_that_are_refused(
    live: Live, body: bytes, query: str, status: int, words: str
) -> None:
    reply = live.ask("POST", f"/classify{query}", body)
    assert (reply.status, words in reply.json()["error"]) == (status, True), reply.body


def test_a_form_is_refused_with_what_would_do(live: Live) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = live.ask("POST", "/classify", b"--x--", headers)
    assert reply.status == 415
    assert "--data-binary" in reply.json()["error"]


# --- the rest ----------------------------------------------------------------------------------


def test_request_ids_are_echoed_and_logged(live: Live) -> None:
    reply = live.ask("GET", "/v2", headers={"X-Request-ID": "abc-123"})
    assert reply.header("x-request-id") == "abc-123"
    line = live.logged("abc-123")
    assert (line["path"], line["code"], line["method"]) == ("/v2", 200, "GET")
    forged = live.ask("GET", "/v2", headers={"X-Request-ID": 'x"} {"event": "forged'})
    assert len(forged.header("x-request-id") or "") == 32
    assert live.events("forged") == []


def test_an_inference_is_logged_with_its_batch(live: Live) -> None:
    body, length = inference(random_images(3))
    headers = {"Inference-Header-Content-Length": str(length), "X-Request-ID": "of-three"}
    assert live.ask("POST", INFER, body, headers).status == 200
    line = live.logged("of-three")
    assert line["batch"] >= 3
    assert line["compute_ms"] > 0


def test_metrics_count(live: Live) -> None:
    before = {name: live.metric(f"rest_deploy_{name}") for name in ("images_total", "ready")}
    assert live.infer(random_images(2)).status == 200
    assert live.metric("rest_deploy_images_total") >= before["images_total"] + 2
    assert before["ready"] == 1
    text = live.ask("GET", "/metrics").body.decode()
    for name in ("queue_seconds", "compute_seconds", "request_seconds", "batch_images"):
        assert f"rest_deploy_{name}_bucket" in text
    # Counted when the answer has left, which its reader may be quicker than.
    counted = 'rest_deploy_requests_total{code="200",route="infer"}'
    eventually(lambda: counted in live.ask("GET", "/metrics").body.decode(), live)
    eventually(lambda: live.metric("rest_deploy_body_bytes") == 0, live)


def test_metrics_have_no_label_a_client_chooses(live: Live) -> None:
    assert live.ask("GET", "/never/heard/of").status == 404
    assert live.ask("POST", "/v2/models/surprise/infer", b"{}").status == 404
    text = live.ask("GET", "/metrics").body.decode()
    assert "surprise" not in text
    assert "heard" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v2/", "/v2/models/", "/v2/models/other", "/v2/models/rest_nano/versions/2",
        "/v2/models/../rest_nano", "/v2/models/%2e%2e%2fetc%2fpasswd", "/v2/models/%00",
        "/v2/models/rest_nano%2f..", "/v2/models/rest_nano/versions/..%2f1",
        "/v2//models/rest_nano",
        "/../../etc/passwd", "/v2/models/rest_nano/", "/v2/models/" + "a" * 5000,
        "/v2/models/rest_nano/infer/x", "/v2/models/%ff%fe", "/docs",
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(live: Live, path: str) -> None:
    reply = live.ask("GET", path)
    assert reply.status == 404, reply.body
    assert set(reply.json()) == {"error"}


def test_methods(live: Live) -> None:
    assert live.ask("GET", INFER).status == 405
    assert live.ask("DELETE", "/v2").status == 405
    assert live.ask("HEAD", "/v2/health/ready").status == 200


# --- compressed and chunked bodies -------------------------------------------------------------


def test_a_chunked_body(live: Live) -> None:
    body, length = inference(random_images())
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    reply = live.ask("POST", INFER, pieces, {"Inference-Header-Content-Length": str(length)})
    assert reply.status == 200, reply.body


def test_bodies_over_the_limit_are_refused_unread(live: Live) -> None:
    """One that says so, one that does not, and one that becomes so."""
    assert live.ask("POST", INFER, headers={"Content-Length": str(10**12)}).status == 413
    pieces = (bytes(100_000) for _ in range(10_000))
    assert live.ask("POST", INFER, pieces).status == 413
    bomb = gzip.compress(bytes(100_000_000))
    reply = live.ask("POST", INFER, bomb, {"Content-Encoding": "gzip"})
    assert (reply.status, "becomes" in reply.json()["error"]) == (413, True)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        ("gzip", b"not gzip", 400, "damaged"),
        ("gzip", gzip.compress(b"{}")[:-3], 400, "cut short"),
        ("gzip", gzip.compress(b"{}") + b"more", 400, "followed by other bytes"),
        ("deflate", zlib.compress(b"{}")[:-1], 400, "cut short"),
        ("br", b"{}", 415, "expected gzip, deflate"),
        ("gzip, gzip", b"{}", 415, "expected gzip, deflate"),
    ],
)
def test_damaged_compression(
    live: Live, encoding: str, body: bytes, status: int, words: str
) -> None:
    reply = live.ask("POST", INFER, body, {"Content-Encoding": encoding})
    assert (reply.status, words in reply.json()["error"]) == (status, True), reply.body


def test_a_deadline_of_the_request(live: Live) -> None:
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            live.infer(random_images(4, 128))

    thread = threading.Thread(target=others)
    thread.start()
    try:
        reply = live.infer(random_images(4, 200), parameters={"timeout": 1})
    finally:
        done.set()
        thread.join()
    assert reply.status == 504
    assert "not" in reply.json()["error"]


def test_openapi_is_there_and_names_every_route(live: Live) -> None:
    document = json.loads(live.ask("GET", "/openapi.json").body)
    assert document["openapi"].startswith("3.1")
    assert "/v2/models/{model}/infer" in document["paths"]
    assert len(document["paths"]) == 15
