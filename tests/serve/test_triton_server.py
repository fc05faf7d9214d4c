"""NVIDIA's own server loads what is written, answers as Session does, and refuses what we refuse.

The slow ones need the environment of `make triton-venv` ($REST_DEPLOY_TRITON_VENV or .triton-venv).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import rest_deploy
from rest_deploy import photos
from rest_deploy.errors import ArtifactError, MissingDependencyError
from rest_deploy.preprocess import load_image, to_input, to_tensor
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.session import Session
from rest_deploy.serve import triton, triton_server
from rest_deploy.serve.triton_config import ModelConfig, render
from rest_deploy.serve.triton_models import Wishes, models
from rest_deploy.serve.triton_server import STUB, Installation, Server, complete, errors, find
from rest_deploy.serve.triton_source import examine
from rest_deploy.signature import InputKind
from tests.serve.engines import onnx_for, plan_for

CLONE = Path(rest_deploy.__file__).resolve().parents[1]
EXAMPLES = CLONE / "examples"
ASKER = Path(__file__).with_name("triton_asker.py")
CROPS = 100
Float32 = npt.NDArray[np.float32]


# --- the environment -------------------------------------------------------------------------


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """One that answers as a whole one does."""
    package = tmp_path / "lib/python3.11/site-packages/pytriton"
    answer = ["/lib", str(package / "__init__.py"), rest_deploy.__file__, "3.11", "1.26.4"]
    script(tmp_path / "bin/python", f"#!/bin/sh\necho '{msgspec.json.encode(answer).decode()}'\n")
    script(package / "tritonserver/bin/tritonserver", "")
    script(package / f"tritonserver/backends/python/{STUB}", "")
    return tmp_path


def test_find(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find(venv)
    assert (found.library, found.python, found.numpy) == ("/lib", "3.11", "1.26.4")
    assert found.folder == venv / "lib/python3.11/site-packages/pytriton/tritonserver"
    assert found.environment()["PATH"].startswith(f"{venv}/bin{os.pathsep}")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert found.environment()["LD_LIBRARY_PATH"] == "/lib"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/cuda")
    assert found.environment()["LD_LIBRARY_PATH"] == f"/lib{os.pathsep}/cuda"
    monkeypatch.setenv("REST_DEPLOY_TRITON_VENV", str(venv))
    assert find() == found


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda venv: (venv / "bin/python").unlink(), "no virtual environment with Triton"),
        (lambda venv: script(venv / "bin/python", "#!/bin/sh\necho 'no numpy' >&2; exit 1\n"),
         "cannot serve: no numpy"),
        (lambda venv: next(venv.rglob(STUB)).unlink(), "is missing or no program"),
        (lambda venv: next(venv.rglob("tritonserver/bin/*")).chmod(0o644), "is missing or no"),
    ],
)  # fmt: skip
def test_what_is_not_whole(venv: Path, spoil: Any, words: str) -> None:
    spoil(venv)
    with pytest.raises(MissingDependencyError, match=words) as caught:
        find(venv)
    assert caught.value.hint == "make triton-venv"


def test_another_checkout(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_deploy, "__file__", "/elsewhere/rest_deploy/__init__.py")
    with pytest.raises(MissingDependencyError, match="sees the rest_deploy of"):
        find(venv)


def test_complete(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="has no nvidia-pytriton"):
        complete(tmp_path)
    folder = tmp_path / "lib/python3.11/site-packages/pytriton/tritonserver"
    for file in ("bin/tritonserver", "backends/python/x.so", f"python_backend_stubs/3.9/{STUB}"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    with pytest.raises(MissingDependencyError, match=r"no Python backend for Python 3\.11"):
        complete(tmp_path)
    (folder / "python_backend_stubs/3.11").mkdir()
    (folder / f"python_backend_stubs/3.11/{STUB}").write_text("stub")
    complete(tmp_path)
    stub = folder / f"backends/python/{STUB}"
    assert (stub.read_text(), os.access(stub, os.X_OK)) == ("stub", True)


def test_errors_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "I1125 19:51:07.482130 31552 a.cc:1] \"fine\"\n"
        "E1125 19:51:07.482130 31552 server.cc:241] \"CudaDriverHelper has not been set up\"\n"
        "E1125 19:51:07.834042 31552 backend_model.cc:692] \"ERROR: no module\"\nError: no\n"
    )  # fmt: skip
    assert errors(log) == ['"ERROR: no module"']


# --- a server made up of a shell script ------------------------------------------------------


def installed(folder: Path, text: str) -> Installation:
    server = script(folder / "tritonserver/bin/tritonserver", text)
    return Installation(folder, server, "/lib", "3.11", "1.26.4")


def test_a_server_that_ends(tmp_path: Path) -> None:
    line = 'E1125 19:51:07.834042 31552 x.cc:6] "out of luck"'
    installation = installed(tmp_path, f"#!/bin/sh\necho '{line}'; exit 1\n")
    with (
        pytest.raises(ArtifactError, match='Triton ended: "out of luck"'),
        Server(installation, tmp_path, log=tmp_path / "log"),
    ):
        pass


def test_a_server_that_hangs(tmp_path: Path) -> None:
    """It and what it started are gone afterwards, although they ignore SIGTERM."""
    text = "#!/bin/bash\ntrap '' TERM\n(trap '' TERM; echo $BASHPID > child; sleep 60; sleep 60)\n"
    installation = installed(tmp_path, text)
    server = Server(installation, tmp_path, log=tmp_path / "log", seconds=1)
    before = triton_server.subprocess.Popen.wait  # type: ignore[attr-defined]  # the module's own

    def wait(self: Any, timeout: float | None = None) -> Any:
        return before(self, min(timeout or 1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", wait)
        with pytest.raises(ArtifactError, match="was not ready within 1 s: without a word"), server:
            pass
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        if not running(child):
            break
        time.sleep(0.1)
    assert not running(child)
    assert not running(server.pid)


def test_a_start_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Server) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_ready", interrupt)
    installation = installed(tmp_path, "#!/bin/sh\nexec sleep 60\n")
    server = Server(installation, tmp_path, log=tmp_path / "log")
    with pytest.raises(KeyboardInterrupt), server:
        pass
    assert not running(server.pid)


def running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


# --- NVIDIA's server -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installation() -> Installation:
    try:
        return find()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def engines(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the name that they are served under."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("engines")
    build = {"backend": "openvino", "precision": "fp32"}
    return {"ort": trained_nano, "ov": onnx_for(trained_nano, folder / "x.onnx", **build)}


@pytest.fixture(scope="module")
def server(
    installation: Installation, engines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    root = folder / "models"
    for name, engine in engines.items():
        wishes = Wishes(name=name, threads=2, ensemble=name == "ort", max_delay_ms=20)
        triton.write(engine, root, wishes, backend="python")
    narrow = Wishes(name="narrow", threads=1, ensemble=False, max_batch=1, queue=1)
    triton.write(engines["ort"], root, narrow, backend="python")
    with Server(installation, root, log=folder / "log", options=("--log-verbose=1",)) as running:
        yield running


@pytest.fixture(scope="module")
def warmed_up(server: Server) -> dict[str, Any]:
    """Statistics before the first request."""
    return {name: statistics(server, name) for name in ("ort", "ov", "narrow")}


def statistics(server: Server, name: str) -> Any:
    return server.get(f"/v2/models/{name}/stats")["model_stats"][0]


@pytest.fixture(scope="module")
def encoded() -> list[bytes]:
    """Crops as JPEG and PNG files."""
    if not photos.available():
        pytest.skip("pip install 'rest-deploy[demo]'")
    files = []
    for index, crop in enumerate(photos.crops("test", CROPS, 7)):
        stream = io.BytesIO()
        photos.load(crop).save(stream, "JPEG" if index % 2 else "PNG")
        files.append(stream.getvalue())
    return files


@pytest.fixture(scope="module")
def images(encoded: list[bytes], engines: dict[str, Path]) -> Float32:
    with Session.open(engines["ort"]) as session:
        card = session.metadata.card.preprocessing
    return np.stack([to_tensor(load_image(content), card) for content in encoded])


@pytest.fixture(scope="module")
def answers(
    server: Server, warmed_up: Any, images: Float32, encoded: list[bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:  # fmt: skip
    """What tritonclient got."""
    folder = tmp_path_factory.mktemp("asked")
    files = {f"encoded_{i}": np.frombuffer(file, np.uint8) for i, file in enumerate(encoded)}
    np.savez(folder / "in.npz", images=images, **files)  # type: ignore[arg-type]  # by name
    inside(server, ASKER, server.http, server.grpc, folder / "in.npz", folder / "out.npz",
           "ort", "ov")  # fmt: skip
    found: dict[str, Any] = dict(np.load(folder / "out.npz"))
    return found


def inside(server: Server, file: Path, *arguments: object) -> str:
    """Run a script where Triton's clients are; its standard output."""
    python = server.installation.venv / "bin/python"
    done = subprocess.run(
        [str(python), str(file), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected(engine: Path, images: Float32) -> Float32:
    with Session.open(engine, threads=2) as session:
        return np.concatenate([session.run(image[None]) for image in images])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["http", "grpc", "together"])
@pytest.mark.parametrize("name", ["ort", "ov"])
def test_answers_are_sessions(
    answers: dict[str, Any], engines: dict[str, Path], images: Float32, name: str, way: str
) -> None:
    right, got = expected(engines[name], images), answers[f"{name}/{way}"]
    assert got.shape == (CROPS, 22)
    assert np.abs(got - right).max() < 1e-4
    assert (got.argmax(axis=1) == right.argmax(axis=1)).all()
    assert len(set(right.argmax(axis=1))) > 10
    assert np.abs(np.roll(got, 1, axis=0) - right).max() > 1  # what a mix-up would look like


@pytest.mark.slow
def test_the_ensemble_takes_files(
    answers: dict[str, Any], engines: dict[str, Path], images: Float32, encoded: list[bytes]
) -> None:
    assert np.abs(answers["logits"] - expected(engines["ort"], images)).max() < 1e-4
    with Session.open(engines["ort"]) as session:
        classifier = Classifier(session)
        for index, content in enumerate(encoded):
            best = classifier.classify(content, top=5)
            assert answers["label"][index].tolist() == [found.label for found in best]
            found = answers["probability"][index]
            assert np.allclose(found, [p.probability for p in best], atol=1e-4)


@pytest.mark.slow
def test_requests_share_batches(answers: dict[str, Any], server: Server) -> None:
    """Those sent at once, in twos at least (how many at a time is up to how busy the machine is);
    the others went alone."""
    found = statistics(server, "ort")
    sizes = {row["batch_size"]: row["compute_infer"]["count"] for row in found["batch_stats"]}
    assert max(sizes) <= 8
    assert sum(size * count for size, count in sizes.items()) == found["inference_count"]
    shared = sum(size * count for size, count in sizes.items() if size >= 2)
    assert shared >= CROPS // 4, sizes
    assert found["execution_count"] < found["inference_count"]


@pytest.mark.slow
def test_it_was_warmed_up(warmed_up: dict[str, Any], server: Server) -> None:
    """One image and the largest batch, before the first request."""
    for name, counts in (("ort", {1: 1, 8: 1}), ("ov", {1: 1, 8: 1}), ("narrow", {1: 1})):
        rows = warmed_up[name]["batch_stats"]
        assert {row["batch_size"]: row["compute_infer"]["count"] for row in rows} == counts
    log = server.log.read_text(errors="replace")
    assert re.search(r"model 'ort' instance \S+ is running warmup sample '8x3x224x224'", log)


def infer(server: Server, model: str, body: bytes, header: int) -> tuple[int, bytes]:
    import http.client

    connection = http.client.HTTPConnection(triton_server.HOST, server.http, timeout=30)
    connection.request("POST", f"/v2/models/{model}/infer", body,
                       {"Inference-Header-Content-Length": str(header)})  # fmt: skip
    answer = connection.getresponse()
    found = (answer.status, answer.read())
    connection.close()
    return found


def tensors(images: npt.NDArray[Any]) -> tuple[bytes, int]:
    kind = {"float32": "FP32", "float16": "FP16"}[images.dtype.name]
    described = {"name": "image", "datatype": kind, "shape": images.shape,
                 "parameters": {"binary_data_size": images.nbytes}}  # fmt: skip
    wanted = {"name": "logits", "parameters": {"binary_data": True}}  # FP16 does not go as JSON
    header = msgspec.json.encode({"inputs": [described], "outputs": [wanted]})
    return header + images.tobytes(), len(header)


def file(content: bytes) -> tuple[bytes, int]:
    data = struct.pack("<I", len(content)) + content
    described = {"name": "image_bytes", "datatype": "BYTES", "shape": (1, 1),
                 "parameters": {"binary_data_size": len(data)}}  # fmt: skip
    header = msgspec.json.encode({"inputs": [described]})
    return header + data, len(header)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(1, 3, 16, 64), (1, 1, 64, 64), (9, 3, 64, 64), (3, 64, 64), (0, 3, 64, 64)]
)
def test_bad_shapes_are_the_clients_fault(server: Server, shape: tuple[int, ...]) -> None:
    status, body = infer(server, "ort", *tensors(np.zeros(shape, np.float32)))
    assert status == 400
    assert b"error" in body
    assert infer(server, "ort", *tensors(np.zeros((2, 3, 32, 40), np.float32)))[0] == 200


@pytest.mark.slow
def test_bad_values_and_files_are_the_clients_fault(server: Server, encoded: list[bytes]) -> None:
    images = np.full((1, 3, 64, 64), np.nan, np.float32)
    status, body = infer(server, "ov", *tensors(images))
    assert (status, b"NaN" in body) == (400, True)
    for content in (b"nonsense", encoded[1][:200], b""):
        status, body = infer(server, "ort_classify", *file(content))
        assert (status, b"image 0 of 1" in body) == (400, True)
    assert infer(server, "ort_classify", *file(encoded[1]))[0] == 200


@pytest.mark.slow
def test_a_full_queue_rejects(server: Server) -> None:
    """Some of many requests at once wait, some are told to come back; none is lost."""
    from concurrent.futures import ThreadPoolExecutor

    images = np.zeros((1, 3, 320, 320), np.float32)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: infer(server, "narrow", *tensors(images)), range(48)))
    statuses = {status for status, _ in found}
    assert statuses == {200, 503}
    assert all(b"queue size" in body for status, body in found if status == 503)


@pytest.mark.slow
def test_labels_by_the_servers_own_extension(server: Server, images: Float32) -> None:
    """`classification` of an output: value, index and label, from the labels file."""
    described = {"name": "image", "datatype": "FP32", "shape": (1, *images.shape[1:]),
                 "parameters": {"binary_data_size": images[:1].nbytes}}  # fmt: skip
    wanted = {"name": "logits", "parameters": {"classification": 2}}
    header = msgspec.json.encode({"inputs": [described], "outputs": [wanted]})
    status, body = infer(server, "ort", header + images[:1].tobytes(), len(header))
    assert status == 200
    value, index, label = msgspec.json.decode(body)["outputs"][0]["data"][0].split(":")
    assert photos.LABELS[int(index)] == label
    assert float(value) > 0


@pytest.mark.slow
def test_metrics(server: Server) -> None:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=30) as found:
        assert b'nv_inference_count{model="ort"' in found.read()


@pytest.mark.slow
@pytest.mark.parametrize("example", ["triton_classify.py", "triton_tensors.py", "triton_curl.sh"])
def test_the_examples(
    server: Server, engines: dict[str, Path], encoded: list[bytes], tmp_path: Path, example: str
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded[7])
    with Session.open(engines["ort"]) as session:
        label = Classifier(session).classify(photo, top=1)[0].label
    url, path = f"127.0.0.1:{server.http}", EXAMPLES / example
    if example == "triton_classify.py":
        said = inside(server, path, photo, "--model", "ort_classify", "--url", url)
        assert said.splitlines()[1].endswith(f"%  {label}")
    elif example == "triton_tensors.py":
        said = inside(server, path, engines["ort"], photo, photo, "--model", "ort", "--url", url)
        assert [line.split(": ")[1].split()[0] for line in said.splitlines()] == [label] * 2
    else:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        done = subprocess.run(["bash", str(path), "ort_classify", str(photo), url],
                              capture_output=True, text=True, check=True, timeout=60)  # fmt: skip
        outputs = {o["name"]: o["data"] for o in msgspec.json.decode(done.stdout)["outputs"]}
        assert outputs["label"][0] == label


# --- several outputs, pixels -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_several_outputs(
    installation: Installation, everything_nano: Path, pixels_nano: Path, encoded: list[bytes],
    tmp_path: Path, kind: InputKind,
) -> None:  # fmt: skip
    """The outputs asked for alone, with their shapes; both ensembles."""
    http = pytest.importorskip("tritonclient.http")
    engine = everything_nano if kind == "float" else pixels_nano
    triton.write(engine, tmp_path / "models", Wishes(name="all", threads=1), backend="python")
    with Session.open(engine, threads=1) as session:
        card = session.metadata.card.preprocessing
        images = np.stack([to_input(load_image(one), kind, card) for one in encoded[:2]])
        right = session.run_all(images)
    with Server(installation, tmp_path / "models", log=tmp_path / "log") as server:
        client = http.InferenceServerClient(f"{triton_server.HOST}:{server.http}")
        given = http.InferInput("image", images.shape, "UINT8" if kind == "uint8" else "FP32")
        given.set_data_from_numpy(images)
        everything = client.infer("all", [given])
        assert {one["name"] for one in everything.get_response()["outputs"]} == set(right)
        for name, values in right.items():
            size = max(1.0, float(np.abs(values).max()))
            found = everything.as_numpy(name)
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-4 * size)
        some = client.infer("all", [given], outputs=[http.InferRequestedOutput("c5")])
        assert [one["name"] for one in some.get_response()["outputs"]] == ["c5"]
        np.testing.assert_array_equal(some.as_numpy("c5"), everything.as_numpy("c5"))
        photo = http.InferInput("image_bytes", [1, 1], "BYTES")
        photo.set_data_from_numpy(np.array([[encoded[1]]], dtype=np.object_))
        vector = client.infer("all_embed", [photo]).as_numpy("embedding")
        np.testing.assert_allclose(vector, right["embedding"][1:], rtol=0, atol=1e-4)
        index = client.infer("all_classify", [photo]).as_numpy("index")
        assert index[0, 0] == right["logits"][1].argmax()
        client.close()


# --- what we refuse, the server refuses ------------------------------------------------------


def broken(config: ModelConfig, case: str) -> str:
    """The text of a configuration with one mistake."""
    text = render(config, "")
    changes = {
        "preferred": ("preferred_batch_size: [ 8 ]", "preferred_batch_size: [ 9 ]"),
        "gpu": ("KIND_CPU", "KIND_GPU"),
        "field": ("max_batch_size", "max_batch"),
        "backend": ('backend: "python"', 'backend: "pyhton"'),
        "warm-up": ("dims: [ 3, 224, 224 ]", "dims: [ 1, 224, 224 ]"),
        "good": ("count: 1", "count: 1"),
    }
    old, new = changes[case]
    assert old in text
    return text.replace(old, new)


CASES = {
    "preferred": "preferred size must be <= max batch size for preferred",
    "gpu": "model gpu has kind KIND_GPU but no GPUs are available",
    "field": "models/field/config.pbtxt",
    "backend": "unable to find backend library for backend 'pyhton'",
    "warm-up": "unexpected shape for input 'image' for model 'warm-up'",
}
"""What the server's log says of each."""


@pytest.mark.slow
def test_the_servers_rules_are_ours(
    installation: Installation, engines: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "models"
    wishes = Wishes(ensemble=False, threads=1)
    for case in (*CASES, "good"):
        named = msgspec.structs.replace(wishes, name=case)
        triton.write(engines["ort"], root, named, backend="python")
        (model,) = models(examine(engines["ort"], "python"), named)
        (root / case / "config.pbtxt").write_text(broken(model.config, case))
    with Server(installation, root, log=tmp_path / "log", partly=True) as server:
        index = {row["name"]: row for row in server.get("/v2/repository/index", "POST")}
    assert index["good"]["state"] == "READY"
    ours, log = triton.check(root), (tmp_path / "log").read_text()
    for case, words in CASES.items():
        assert index.get(case, {}).get("state") != "READY", case
        assert words in log
        if case not in ("backend", "gpu"):  # others' backends and machines may have them
            assert any(line.startswith(f"{case}:") for line in ours.problems), case
    assert any(line.startswith("gpu:") for line in ours.notes)
    assert not any(line.startswith("good:") for line in ours.problems)


ZEROS = """
import json
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        found = []
        for request in requests:
            images = pb.get_input_tensor_by_name(request, "image").as_numpy()
            assert images.ndim == 4 and images.shape[1] == 3
            answers = np.zeros((len(images), 22), images.dtype)
            found.append(pb.InferenceResponse([pb.Tensor("logits", answers)]))
        return found
"""
"""Takes what the engine would take."""


@pytest.mark.slow
def test_configurations_of_backends_that_are_not_here(
    installation: Installation, trained_nano: Path, tmp_path: Path
) -> None:
    """The wheel has the Python backend alone: it stands in, all else is as it was written."""
    root = tmp_path / "models"
    plan = plan_for(trained_nano, tmp_path / "x.engine", io_type="float16")
    openvino = onnx_for(trained_nano, tmp_path / "x.onnx", backend="openvino", precision="bf16")
    for name, engine in (("onnxruntime", trained_nano), ("tensorrt", plan), ("openvino", openvino)):
        wishes = Wishes(name=name, ensemble=name != "openvino")
        triton.write(engine, root, wishes, backend=name)
        path = root / name / "config.pbtxt"
        text = path.read_text()
        for old in (f'backend: "{name}"', 'platform: "tensorrt_plan"'):
            text = text.replace(old, 'backend: "python"')
        text = text.replace("KIND_GPU", "KIND_CPU").replace("default_model_filename", "# ")
        path.write_text(re.sub(r"\n *profile: .*", "", text))
        (root / name / "1/model.py").write_text(ZEROS)
    with Server(installation, root, log=tmp_path / "log") as server:
        for name, dtype, batches in (
            ("onnxruntime", np.float32, {1: 1, 8: 1}),
            ("tensorrt", np.float16, {1: 1, 8: 1}),
            ("openvino", np.float32, {1: 2}),  # without batching every run counts as one
        ):
            rows = statistics(server, name)["batch_stats"]
            counts = {row["batch_size"]: row["compute_infer"]["count"] for row in rows}
            assert counts == batches, name
            images = np.zeros((2, 3, 64, 96), dtype)
            status, body = infer(server, name, *tensors(images))
            assert status == 200, body
        photo = io.BytesIO()
        photos.load(photos.crops("test", 1, 0)[0]).save(photo, "JPEG")
        for name in ("onnxruntime", "tensorrt"):
            status, body = infer(server, f"{name}_classify", *file(photo.getvalue()))
            assert status == 200, body


def test_the_examples_compile() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert files
    for path in files:
        compile(path.read_text(), str(path), "exec")
    for path in EXAMPLES.glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(CLONE / "scripts/triton_server.py"), "run", str(tmp_path),
         "--venv", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CLONE)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "no virtual environment with Triton" in done.stderr
    assert "make triton-venv" in done.stderr
