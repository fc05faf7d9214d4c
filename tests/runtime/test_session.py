from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from rest_deploy.contracts import Runner
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.errors import ArtifactError, MissingDependencyError, ShapeError
from rest_deploy.runtime.session import Session
from rest_deploy.verify.parity import Case, synthetic_images


@pytest.fixture(scope="module")
def session(exported_nano: Path) -> Session:
    return Session.open(exported_nano, threads=1)


def test_arrays_in_arrays_out(session: Session) -> None:
    images = synthetic_images(Case(batch=3, height=40, width=64))
    logits = session.run(images)
    assert logits.shape == (3, 1000)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(session.run(images[1:2])[0], logits[1], atol=1e-4)


def test_non_contiguous_input(session: Session) -> None:
    images = synthetic_images(Case(batch=1, height=64, width=96))
    view = np.asfortranarray(images)
    np.testing.assert_array_equal(session.run(view), session.run(images))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 31, 64), np.float32),
        np.zeros((1, 1, 64, 64), np.float32),
        np.zeros((0, 3, 64, 64), np.float32),
        np.zeros((3, 64, 64), np.float32),
        np.zeros((1, 3, 64, 64), np.float64),
        np.zeros((1, 64, 64, 3), np.uint8),
    ],
)
def test_other_tensors_are_refused(session: Session, images: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"expected float32 \(batch, 3, height, width\)"):
        session.run(images)


def test_many_threads_over_one_session(session: Session) -> None:
    batches = [synthetic_images(Case(batch=1, height=32 + 8 * i, width=64), i) for i in range(6)]
    expected = [session.run(batch) for batch in batches]
    failures: list[str] = []

    def work(index: int) -> None:
        for _ in range(5):
            if not np.array_equal(session.run(batches[index]), expected[index]):
                failures.append(f"thread {index} got another's answer")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_runner_keeps_the_protocol(session: Session) -> None:
    assert isinstance(session.runner, Runner)
    assert session.runner.backend == "onnxruntime/cpu"
    assert session.runner.inputs[0].shape == ("batch", 3, "height", "width")
    assert session.runner.outputs[0].shape == ("batch", 1000)


def test_foreign_model(exported_nano: Path, tmp_path: Path) -> None:
    model = onnx.load(exported_nano)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ArtifactError, match="was not written by rest-deploy"):
        Session.open(tmp_path / "foreign.onnx")


def test_truncated_model(exported_nano: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported_nano.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="cannot load"):
        Session.open(damaged)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such model"):
        Session.open(tmp_path / "none.onnx")


def test_a_provider_that_is_not_here_is_an_error(exported_nano: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(MissingDependencyError, match="has no CUDAExecutionProvider"):
        OnnxRuntimeRunner(exported_nano, provider="cuda")
