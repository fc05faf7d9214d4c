"""The same hundred photos through Python, the C++ programs and NVIDIA's Triton: one engine, one
answer. Slow; Triton's part needs the environment of `make triton-venv`.
"""

from __future__ import annotations

import ctypes
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy import photos
from rest_deploy.errors import MissingDependencyError
from rest_deploy.preprocess import load_image, to_tensor
from rest_deploy.runtime.session import Session
from rest_deploy.serve import triton
from rest_deploy.serve.triton_models import Wishes
from rest_deploy.serve.triton_server import HOST, Server, find
from tests.cpp_programs import HERE, built, run, start, stop
from tests.serve.engines import onnx_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not photos.available(), reason="scikit-image is not installed"),
]

COUNT = 100
CLOSE = 1e-4
Float32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module", params=["trained_nano", "trained_v2_nano"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each family; built for OpenVINO, which all of them run."""
    pytest.importorskip("openvino")
    export: Path = request.getfixturevalue(request.param)
    path = tmp_path_factory.mktemp("engine") / export.name
    return onnx_for(export, path, backend="openvino", precision="fp32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Crops of other sizes each, as JPEG and PNG."""
    folder, found = tmp_path_factory.mktemp("photos"), []
    for index, crop in enumerate(photos.crops("test", COUNT, 11)):
        kind = "jpeg" if index % 2 else "png"
        stream = io.BytesIO()
        photos.load(crop).save(stream, kind)
        found.append(folder / f"{index:03d}.{kind}")
        found[-1].write_bytes(stream.getvalue())
    return found


@pytest.fixture(scope="module")
def session(engine: Path) -> Iterator[Session]:
    with Session.open(engine) as opened:
        assert opened.runner.backend == "openvino/cpu"
        yield opened


@pytest.fixture(scope="module")
def images(session: Session, files: list[Path]) -> Float32:
    how = session.metadata.card.preprocessing
    return np.stack([to_tensor(load_image(path), how) for path in files])


@pytest.fixture(scope="module")
def logits(session: Session, images: Float32) -> Float32:
    found = np.concatenate([session.run(image[None]) for image in images])
    assert len(set(found.argmax(axis=1))) > 10, "too few classes to tell answers apart"
    return found


def check_logits(got: Float32, logits: Float32) -> None:
    assert got.shape == logits.shape
    assert np.abs(got - logits).max() < CLOSE
    np.testing.assert_array_equal(got.argmax(axis=1), logits.argmax(axis=1))
    # What a mix-up of two photos would look like.
    assert np.abs(np.roll(got, 1, axis=0) - logits).max() > 1


def check_tensors(got: Float32, images: Float32) -> None:
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), images.view(np.uint32))


def ask(url: str, model: str, name: str, arrays: Any, kind: str, outputs: list[str]) -> Any:
    """By NVIDIA's client, one request for each of `arrays`; for each of `outputs` one array."""
    http = pytest.importorskip("tritonclient.http")
    client, found = http.InferenceServerClient(url), []
    for array in arrays:
        given = http.InferInput(name, array.shape, kind)
        given.set_data_from_numpy(array)
        answer = client.infer(model, [given])
        found.append([answer.as_numpy(output) for output in outputs])
    client.close()
    return [np.concatenate(column) for column in zip(*found, strict=True)]


@HERE
class TestCpp:
    def test_preprocessing(self, session: Session, files: list[Path], images: Float32) -> None:
        """Through the C interface of the shared library."""
        library = ctypes.CDLL(str(built().parent / "librest_deploy.so"))
        handle, side = ctypes.c_void_p(), images.shape[-1]
        path = str(session.path).encode()
        assert library.rest_deploy_open(path, 0, 0, ctypes.byref(handle)) == 0
        library.rest_deploy_input_size.argtypes = [ctypes.c_void_p]
        assert library.rest_deploy_input_size(handle) == side
        got = np.empty_like(images)
        for file, tensor in zip(files, got, strict=True):
            content = file.read_bytes()
            pointer = tensor.ctypes.data_as(ctypes.c_void_p)
            length, room = ctypes.c_size_t(len(content)), ctypes.c_size_t(tensor.size)
            assert library.rest_deploy_preprocess(handle, content, length, pointer, room) == 0
        library.rest_deploy_close.argtypes = [ctypes.c_void_p]
        library.rest_deploy_close(handle)
        check_tensors(got, images)

    @pytest.mark.parametrize("options", [(), ("--fixed",)])
    def test_classify(
        self, engine: Path, files: list[Path], logits: Float32, options: tuple[str, ...]
    ) -> None:
        done = run(built() / "classify", engine, *files, "--json", *options)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)["images"]
        check_logits(np.array([image["logits"] for image in report], np.float32), logits)
        first = [image["predictions"][0]["index"] for image in report]
        assert first == logits.argmax(axis=1).tolist()

    def test_serve(self, engine: Path, files: list[Path], images: Float32, logits: Float32) -> None:
        server = start(built(), engine, "--fixed")
        url = server.url.removeprefix("http://")
        asked = ask(url, engine.stem, "image", images[:, None], "FP32", ["logits"])
        best = [server.post("/classify?top=1", path.read_bytes()) for path in files]
        stop(server)
        check_logits(asked[0], logits)
        assert {code for code, _ in best} == {200}
        found = [answer["predictions"][0]["index"] for _, answer in best]
        assert found == logits.argmax(axis=1).tolist()


@pytest.fixture(scope="module")
def url(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        installation = find()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("triton")
    triton.write(engine, folder / "models", Wishes(name="same"), backend="python")
    with Server(installation, folder / "models", log=folder / "log") as server:
        yield f"{HOST}:{server.http}"


@pytest.fixture(scope="module")
def encoded(files: list[Path]) -> list[npt.NDArray[Any]]:
    return [np.array([[path.read_bytes()]], dtype=np.object_) for path in files]


class TestTriton:
    def test_preprocessing(
        self, url: str, encoded: list[npt.NDArray[Any]], images: Float32
    ) -> None:
        asked = ask(url, "same_preprocess", "image_bytes", encoded, "BYTES", ["image"])
        check_tensors(asked[0], images)

    def test_engine(self, url: str, images: Float32, logits: Float32) -> None:
        check_logits(ask(url, "same", "image", images[:, None], "FP32", ["logits"])[0], logits)

    def test_ensemble(self, url: str, encoded: list[npt.NDArray[Any]], logits: Float32) -> None:
        names = ["logits", "index", "label"]
        got = ask(url, "same_classify", "image_bytes", encoded, "BYTES", names)
        check_logits(got[0], logits)
        best = logits.argmax(axis=1)
        np.testing.assert_array_equal(got[1][:, 0], best)
        assert [label.decode() for label in got[2][:, 0]] == [photos.LABELS[i] for i in best]


def test_one_bit_would_be_seen(images: Float32, logits: Float32) -> None:
    """The checks' own control."""
    changed = images.copy()
    changed.view(np.uint32)[7, 1, 2, 3] ^= 1
    with pytest.raises(AssertionError):
        check_tensors(changed, images)
    for spoilt in (np.roll(logits, 1, axis=0), logits + 2 * CLOSE, logits.round(2)):
        with pytest.raises(AssertionError):
            check_logits(spoilt, logits)
