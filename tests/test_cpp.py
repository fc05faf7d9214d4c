"""The C++ programs beside Python's session: the same labels, and a server that clients know.

Slow: the first run builds cpp/ (a minute). `make test-cpp` runs the C++ tests themselves.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy import Embedder
from rest_deploy.photos import PHOTOS, available
from rest_deploy.preprocess import load_image, to_input, to_tensor
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER
from tests.cpp_programs import CLONE, HERE, Served, built, run, start, stop

pytestmark = [
    pytest.mark.slow,
    HERE,
    pytest.mark.skipif(not available(), reason="scikit-image is not installed"),
]

Float32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def programs() -> Path:
    return built()


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    found = [folder / photo.file for photo in PHOTOS]
    return [path for path in found if path.suffix in (".png", ".jpg")]


class TestClassify:
    def test_logits_are_those_of_python(
        self, programs: Path, trained_nano: Path, photos: list[Path]
    ) -> None:
        done = run(programs / "classify", trained_nano, *photos, "--json", "--top", 3)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["backend"] == "openvino/cpu"
        assert len(report["images"]) == len(photos) >= 20
        with Session.open(trained_nano, backend="openvino", specialize=NEVER) as session:
            how, labels = session.metadata.card.preprocessing, session.metadata.labels
            for path, image in zip(photos, report["images"], strict=True):
                expected = session.run(to_tensor(load_image(path), how)[None])[0]
                np.testing.assert_allclose(image["logits"], expected, rtol=0, atol=1e-4)
                best = int(np.argmax(expected))
                assert image["predictions"][0]["index"] == best
                assert image["predictions"][0]["label"] == labels[best]
                # The control: the bound tells two photos apart.
                other = np.roll(expected, 1)
                assert np.abs(np.asarray(image["logits"]) - other).max() > 1e-2

    def test_text_and_latencies(
        self, programs: Path, trained_nano: Path, photos: list[Path]
    ) -> None:
        done = run(programs / "classify", trained_nano, photos[0], "--top", 1, "--repeat", 3)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == str(photos[0])
        assert "%" in lines[1]
        assert "3 runs" in done.stdout
        assert [line.split()[0] for line in lines[-4:]] == [
            *("decode", "preprocess", "inference", "total")
        ]

    @pytest.mark.parametrize(
        ("arguments", "code", "word"),
        [
            (["MODEL"], 2, "image"),
            (["MODEL", "PHOTO", "--top", "0"], 2, "--top"),
            (["MODEL", "PHOTO", "--what"], 2, "--what"),
            (["missing.onnx", "PHOTO"], 3, "no such model"),
            (["MODEL", "missing.png"], 3, "cannot open"),
            (["MODEL", "MODEL"], 3, "no JPEG or PNG"),
        ],
    )
    def test_refusals(
        self,
        programs: Path,
        trained_nano: Path,
        photos: list[Path],
        arguments: list[str],
        code: int,
        word: str,
    ) -> None:
        files = {"MODEL": trained_nano, "PHOTO": photos[0]}
        done = run(programs / "classify", *(files.get(name, name) for name in arguments))
        assert done.returncode == code, done.stderr
        assert word in done.stderr
        assert done.stdout == ""

    def test_another_file_under_its_sidecar(
        self, programs: Path, trained_nano: Path, photos: list[Path], tmp_path: Path
    ) -> None:
        copy = tmp_path / trained_nano.name
        copy.write_bytes(trained_nano.read_bytes()[:-1] + b"x")
        shutil.copy(f"{trained_nano}.json", tmp_path)
        done = run(programs / "classify", copy, photos[0])
        assert done.returncode == 3
        assert "damaged or replaced" in done.stderr


@pytest.fixture(scope="module")
def served(programs: Path, trained_nano: Path) -> Iterator[Served]:
    server = start(programs, trained_nano, "--max-body-mb", 16, "--max-megapixels", 1)
    yield server
    stop(server)


@pytest.fixture(scope="module")
def batch(trained_nano: Path, photos: list[Path]) -> tuple[Float32, Float32]:
    """Some normalized photos and their logits from Python."""
    with Session.open(trained_nano, backend="openvino", specialize=NEVER) as session:
        how = session.metadata.card.preprocessing
        images = np.stack([to_tensor(load_image(path), how) for path in photos[:3]])
        return images, session.run(images)


class TestTritonClient:
    """NVIDIA's client, unchanged."""

    @pytest.fixture
    def client(self, served: Served) -> Any:
        http = pytest.importorskip("tritonclient.http")
        return http.InferenceServerClient(served.url.removeprefix("http://"), concurrency=8)

    def test_health_and_metadata(self, client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("rest_nano")
        assert client.is_model_ready("rest_nano", "1")
        assert not client.is_model_ready("rest_nano", "2")
        assert not client.is_model_ready("other")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("rest_nano") == {
            "name": "rest_nano",
            "versions": ["1"],
            "platform": "openvino/cpu",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 22]}],
        }

    @pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("binary_out", [True, False])
    @pytest.mark.parametrize("binary_in", [True, False])
    def test_infer(
        self,
        client: Any,
        batch: tuple[Float32, Float32],
        binary_in: bool,
        binary_out: bool,
        compression: str | None,
    ) -> None:
        from tritonclient import http

        images, expected = batch
        given = http.InferInput("image", images.shape, "FP32")
        given.set_data_from_numpy(images, binary_data=binary_in)
        answer = client.infer(
            "rest_nano",
            [given],
            outputs=[http.InferRequestedOutput("logits", binary_data=binary_out)],
            request_id="a7",
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        assert answer.get_response()["id"] == "a7"
        np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=0, atol=1e-4)

    def test_classification(self, client: Any, batch: tuple[Float32, Float32]) -> None:
        from tritonclient import http

        images, expected = batch
        given = http.InferInput("image", images.shape, "FP32")
        given.set_data_from_numpy(images)
        wanted = http.InferRequestedOutput("logits", class_count=2)
        found = client.infer("rest_nano", [given], outputs=[wanted]).as_numpy("logits")
        assert found.shape == (3, 2)
        for row, logits in zip(found, expected, strict=True):
            value, index, label = row[0].decode().split(":")
            assert int(index) == int(np.argmax(logits))
            assert float(value) == pytest.approx(float(logits.max()), abs=1e-4)
            assert label == PHOTOS[int(index)].label

    def test_many_at_a_time(
        self, served: Served, client: Any, batch: tuple[Float32, Float32]
    ) -> None:
        from tritonclient import http

        images, expected = batch
        pending = []
        for turn in range(24):
            image = images[turn % 3 : turn % 3 + 1]
            given = http.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            pending.append(client.async_infer("rest_nano", [given]))
        for turn, request in enumerate(pending):
            found = request.get_result().as_numpy("logits")
            np.testing.assert_allclose(found, expected[turn % 3][None], rtol=0, atol=1e-4)
        assert "rest_deploy_batch_images_count" in served.get("/metrics")

    def test_refusals(self, client: Any) -> None:
        from tritonclient import http
        from tritonclient.utils import InferenceServerException

        for shape, name, model, code in (
            ((1, 3, 16, 16), "image", "rest_nano", "400"),
            ((9, 3, 32, 32), "image", "rest_nano", "400"),
            ((1, 3, 64, 64), "picture", "rest_nano", "400"),
            ((1, 3, 64, 64), "image", "other", "404"),
        ):
            given = http.InferInput(name, shape, "FP32")
            given.set_data_from_numpy(np.zeros(shape, np.float32))
            with pytest.raises(InferenceServerException) as raised:
                client.infer(model, [given])
            assert raised.value.status() == code


class TestServe:
    def test_classify(self, served: Served, photos: list[Path], trained_nano: Path) -> None:
        from rest_deploy.runtime.classifier import Classifier

        coffee = next(path for path in photos if path.stem == "coffee")
        code, answer = served.post("/classify?top=2", coffee.read_bytes())
        assert code == 200
        classifier = Classifier.open(trained_nano, backend="openvino", specialize=NEVER)
        for found, expected in zip(
            answer["predictions"], classifier.classify(coffee, top=2), strict=True
        ):
            assert found["label"] == expected.label
            assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
        classifier.session.close()

    @pytest.mark.parametrize(
        ("path", "body", "code", "word"),
        [
            ("/classify", b"", 400, "no bytes"),
            ("/classify", b"GIF89a", 400, "JPEG or PNG"),
            ("/classify?top=0", b"x", 400, "top"),
            ("/classify", b"\0" * (17 << 20), 413, "too large"),
            ("/v2/models/rest_nano/infer", b"{", 400, "JSON"),
            ("/v2/models/rest_nano/infer", b"{}", 400, "inputs"),
            ("/v2/models/other/infer", b"{}", 404, "no model other"),
            ("/v2/models/rest_nano/versions/7/infer", b"{}", 404, "version 7"),
            ("/v3", b"{}", 404, "no such path"),
        ],
    )
    def test_refusals(self, served: Served, path: str, body: bytes, code: int, word: str) -> None:
        got, answer = served.post(path, body)
        assert got == code, answer
        assert word in answer["error"]

    def test_compressed_bomb(self, served: Served) -> None:
        import gzip

        bomb = gzip.compress(b"\0" * (64 << 20))
        code, answer = served.post("/classify", bomb, Content_Encoding="gzip")
        assert (code, answer["headers"]["Connection"]) == (413, "close")

    def test_too_many_pixels(self, served: Served, photos: list[Path]) -> None:
        large = next(path for path in photos if path.stem == "retina")
        code, answer = served.post("/classify", large.read_bytes())
        assert code == 413
        assert "1000000" in answer["error"]

    def test_metrics(self, served: Served, photos: list[Path]) -> None:
        line = 'rest_deploy_requests_total{route="classify",code="200"}'

        def count() -> int:
            rows = [row for row in served.get("/metrics").splitlines() if row.startswith(line)]
            return int(rows[0].split()[-1]) if rows else 0

        before = count()
        assert served.post("/classify", photos[0].read_bytes())[0] == 200
        assert count() == before + 1

    def test_full_queue_and_deadline(self, programs: Path, trained_nano: Path) -> None:
        """One image may wait, for at most 400 ms, while others take the engine for longer."""
        options = ("--max-batch", 1, "--queue", 1, "--deadline-ms", 400, "--max-delay-ms", 0)
        server = start(programs, trained_nano, *options, "--max-body-mb", 64)
        shape = [1, 3, 1024, 1024]
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "FP32",
                        "shape": shape,
                        "parameters": {"binary_data_size": int(np.prod(shape)) * 4},
                    }
                ]
            }
        ).encode()
        body = head + np.zeros(shape, np.float32).tobytes()
        answers: list[tuple[int, dict[str, Any]]] = []

        def ask() -> None:
            header = {"Inference_Header_Content_Length": str(len(head))}
            answers.append(server.post("/v2/models/rest_nano/infer", body, **header))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = {code for code, _ in answers}
        assert codes <= {200, 429, 504}
        assert 429 in codes
        refused = next(answer for code, answer in answers if code == 429)
        assert refused["headers"]["Retry-After"] == "1"
        # A deadline that has passed when the request is read: sure to be missed.
        late = json.loads(head)
        late["parameters"] = {"timeout": 1}
        text = json.dumps(late).encode()
        header = {"Inference_Header_Content_Length": str(len(text))}
        code, answer = server.post("/v2/models/rest_nano/infer", text + body[len(head) :], **header)
        assert code == 504, answer
        stop(server)

    def test_draining(self, programs: Path, trained_nano: Path, photos: list[Path]) -> None:
        """What was asked before SIGTERM is answered, and the process ends with 0."""
        server = start(programs, trained_nano, "--max-delay-ms", 1000)
        answers: list[int] = []
        content = photos[0].read_bytes()
        thread = threading.Thread(
            target=lambda: answers.append(server.post("/classify", content)[0])
        )
        thread.start()
        while "rest_deploy_queue_images 1" not in server.get("/metrics"):
            assert thread.is_alive()
        server.process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers == [200]
        stop(server)

    def test_what_it_cannot_serve(self, programs: Path, trained_nano: Path) -> None:
        assert run(programs / "serve").returncode == 2
        assert run(programs / "serve", trained_nano, "--queue", 1).returncode == 2
        assert run(programs / "serve", "missing.onnx").returncode == 3
        server = start(programs, trained_nano)
        taken = server.url.rsplit(":", 1)[1]
        assert run(programs / "serve", trained_nano, "--port", taken).returncode == 5
        stop(server)


class TestSeveralOutputs:
    """A model that gives everything, from normalized images and from pixels."""

    @pytest.fixture(scope="class", params=["float", "uint8"])
    @classmethod
    def several(
        cls,
        request: pytest.FixtureRequest,
        programs: Path,
        everything_nano: Path,
        pixels_nano: Path,
    ) -> Iterator[tuple[Served, Path]]:
        model = everything_nano if request.param == "float" else pixels_nano
        server = start(programs, model, "--fixed", "--max-batch", 4)
        yield server, model
        stop(server)

    def test_outputs_are_those_of_python(
        self, several: tuple[Served, Path], photos: list[Path]
    ) -> None:
        http = pytest.importorskip("tritonclient.http")
        server, model = several
        client = http.InferenceServerClient(server.url.removeprefix("http://"))
        with Session.open(model, backend="openvino", specialize=NEVER) as session:
            metadata = session.metadata
            how, kind = metadata.card.preprocessing, metadata.input_kind
            images = np.stack([to_input(load_image(path), kind, how) for path in photos[:2]])
            right = session.run_all(images)
        described = client.get_model_metadata("rest_nano")
        pixels = kind == "uint8"
        assert described["inputs"] == [
            {
                "name": "image",
                "datatype": "UINT8" if pixels else "FP32",
                "shape": [-1, -1, -1, 3] if pixels else [-1, 3, -1, -1],
            }
        ]
        assert [one["name"] for one in described["outputs"]] == list(right)
        assert described["outputs"][3]["shape"] == [-1, right["c2"].shape[1], -1, -1]
        given = http.InferInput("image", images.shape, described["inputs"][0]["datatype"])
        given.set_data_from_numpy(images)
        everything = client.infer("rest_nano", [given])
        names = [one["name"] for one in everything.get_response()["outputs"]]
        assert names == list(right)
        wanted = [
            http.InferRequestedOutput("c4", binary_data=True),
            http.InferRequestedOutput("embedding", binary_data=False),
        ]
        some = client.infer("rest_nano", [given], outputs=wanted)
        names = [one["name"] for one in some.get_response()["outputs"]]
        assert names == ["c4", "embedding"]
        for name, values in right.items():
            size = float(np.abs(values).max())
            for answer in (everything, some) if name in names else (everything,):
                found = answer.as_numpy(name)
                np.testing.assert_allclose(found, values, rtol=0, atol=1e-4 * max(1.0, size))
                # The control: two photos exchanged are seen.
                assert np.abs(found[::-1] - values).max() > 1e-3 * size
        client.close()

    def test_classify_and_embed(self, several: tuple[Served, Path], photos: list[Path]) -> None:
        server, model = several
        coffee = next(path for path in photos if path.stem == "coffee")
        code, answer = server.post("/classify?top=1", coffee.read_bytes())
        assert (code, answer["predictions"][0]["label"]) == (200, "coffee")
        code, answer = server.post("/embed", coffee.read_bytes())
        assert code == 200
        embedder = Embedder.open(model, backend="openvino", specialize=NEVER)
        expected = embedder.embed(coffee)
        embedder.session.close()
        np.testing.assert_allclose(answer["embedding"], expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("outputs", "word"),
        [
            ([{"name": "c9"}], "expected logits, probabilities, embedding, c2, c3, c4, c5"),
            ([{"name": "c2"}, {"name": "c2"}], "twice"),
            ([{"name": "c2", "parameters": {"classification": 1}}], "no classes"),
        ],
    )
    def test_refusals(
        self, several: tuple[Served, Path], outputs: list[dict[str, Any]], word: str
    ) -> None:
        server, model = several
        pixels = "uint8" in model.name
        shape = [1, 32, 32, 3] if pixels else [1, 3, 32, 32]
        tensor = {"name": "image", "datatype": "UINT8" if pixels else "FP32", "shape": shape,
                  "data": [0] * (3 * 32 * 32)}  # fmt: skip
        body = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        code, answer = server.post("/v2/models/rest_nano/infer", body)
        assert code == 400
        assert word in answer["error"]

    def test_a_model_without_an_embedding(self, served: Served, photos: list[Path]) -> None:
        code, answer = served.post("/embed", photos[0].read_bytes())
        assert code == 409
        assert "gives no embedding, but logits" in answer["error"]
        assert "rest-deploy export --output embedding" in answer["error"]


def test_sanitizers() -> None:
    """The C++ tests without a finding of the address, undefined behaviour and thread sanitizers."""
    environment = Path(sys.executable).parents[1]
    done = subprocess.run(
        ["make", "test-cpp-sanitizers", f"VENV={environment}"],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CLONE)},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.count("100% tests passed") == 2
