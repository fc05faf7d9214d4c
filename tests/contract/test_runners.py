"""What every backend that can run here owes a session: one suite, each engine of this machine."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from rest_deploy.contracts import Runner
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.errors import ShapeError, installed
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.specialize import NEVER, SpecializingRunner
from rest_deploy.verify.parity import Case, synthetic_images

TOLERANCE = 1e-4
"""Of logits around 5, between two correct float32 engines: both are within 1e-5 of float64."""


def onnxruntime(path: Path) -> Runner:
    return OnnxRuntimeRunner(path, threads=1)


def openvino(path: Path) -> Runner:
    return OpenVinoRunner(path, threads=1)


def openvino_specialized(path: Path) -> Runner:
    runner = OpenVinoRunner(path, threads=1)
    return SpecializingRunner(runner, runner.specialized)


BACKENDS = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino, specialized": openvino_specialized,
}


@pytest.fixture(scope="module", params=list(BACKENDS))
def session(request: pytest.FixtureRequest, exported_nano: Path) -> Session:
    """Of the float model, the same for all."""
    name = request.param
    if not installed(name.split(",")[0]):
        pytest.skip(f"{name} is not installed")
    described = Session.open(exported_nano).metadata
    return Session(BACKENDS[name](exported_nano), described, exported_nano, None)


@pytest.fixture(scope="module")
def reference(exported_nano: Path) -> Session:
    return Session.open(exported_nano, backend="onnxruntime", threads=1)


def images(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return synthetic_images(Case(batch=batch, height=height, width=width), seed)


def test_it_keeps_the_protocol(session: Session) -> None:
    runner = session.runner
    assert isinstance(runner, Runner)
    assert runner.backend.endswith("/cpu")
    (taken,), (given,) = runner.inputs, runner.outputs
    assert (taken.name, taken.dtype) == (session.metadata.input_name, "float32")
    assert (given.name, given.dtype) == (session.metadata.output_name, "float32")
    assert isinstance(taken.shape[0], str)
    assert taken.shape[1] == 3
    assert isinstance(given.shape[0], str)
    assert given.shape[1] == 1000


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 97, 131), (5, 64, 40), (2, 224, 224)])
def test_any_shape(session: Session, reference: Session, shape: tuple[int, int, int]) -> None:
    given = images(*shape)
    for _ in range(2):
        logits = session.run(given)
        assert logits.shape == (shape[0], 1000)
        assert logits.dtype == np.float32
        assert logits.flags.c_contiguous
        np.testing.assert_allclose(logits, reference.run(given), atol=TOLERANCE, rtol=0)


def test_the_tolerance_sees_another_answer(session: Session, reference: Session) -> None:
    """The negative control of all comparisons here."""
    differ = np.abs(session.run(images(1, 64, 64, 1)) - reference.run(images(1, 64, 64, 2))).max()
    assert differ > 100 * TOLERANCE


def test_an_answer_is_the_callers(session: Session) -> None:
    """Not a view of memory that the next call writes to."""
    first = session.run(images(1, 64, 64, 1))
    kept = first.copy()
    session.run(images(1, 64, 64, 2))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(session.run(images(1, 64, 64, 1)), kept)


@pytest.mark.parametrize("kind", ["fortran", "reversed", "strided", "channels last", "read-only"])
def test_layouts(session: Session, kind: str) -> None:
    given = images(2, 48, 64)
    if kind == "fortran":
        view = np.asfortranarray(given)
    elif kind == "reversed":
        view, given = given[::-1, :, :, ::-1], np.ascontiguousarray(given[::-1, :, :, ::-1])
    elif kind == "strided":
        view = np.repeat(given, 2, axis=3)[..., ::2]
    elif kind == "channels last":
        view = np.ascontiguousarray(given.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    else:
        view = given.copy()
        view.setflags(write=False)
    expected = session.run(given)
    np.testing.assert_array_equal(session.run(view), expected)
    if kind in ("fortran", "reversed", "strided", "channels last"):
        assert not view.flags.c_contiguous
        feed = {session.runner.inputs[0].name: view}
        found = session.runner.infer(feed)[session.runner.outputs[0].name]
        np.testing.assert_array_equal(found, expected)


def test_inputs_are_not_written_to(session: Session) -> None:
    given = images(1, 64, 64)
    kept = given.copy()
    session.run(given)
    np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 31, 64), np.float32),
        np.zeros((1, 1, 64, 64), np.float32),
        np.zeros((0, 3, 64, 64), np.float32),
        np.zeros((3, 64, 64), np.float32),
        np.zeros((1, 3, 64, 64), np.float64),
        np.zeros((1, 64, 64, 3), np.uint8),
    ],
)
def test_other_tensors_are_refused(session: Session, wrong: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"expected float32 \(batch, 3, height, width\)"):
        session.run(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(session: Session, value: float) -> None:
    """In the image it is in, and in no other of the batch."""
    given = images(3, 64, 64)
    expected = session.run(given)
    given[1, 2, 5, 7] = value
    logits = session.run(given)
    assert not np.isfinite(logits[1]).any()
    np.testing.assert_allclose(logits[[0, 2]], expected[[0, 2]], atol=TOLERANCE, rtol=0)


def test_large_values_are_finite(session: Session) -> None:
    """Their sum leaves float32's range, they do not: no NaN is made of them."""
    given = np.full((1, 3, 64, 64), 1e35, np.float32)
    assert session.run(given).shape == (1, 1000)
    given = images(1, 64, 64)
    given[0, 0, :2] = 3e38
    given[0, 0, 2:4] = -3e38
    assert np.isfinite(session.run(given * np.float32(1e-30))).all()


def test_many_threads_over_one_session(session: Session) -> None:
    """Each gets its own answer, whatever its shape."""
    shapes = [(1, 32 + 8 * index, 64) for index in range(4)] + [(2, 64, 64), (3, 40, 40)]
    batches = [images(*shape, seed) for seed, shape in enumerate(shapes)]
    expected = [session.run(batch) for batch in batches]
    failures: list[str] = []

    def work(index: int) -> None:
        try:
            for _ in range(5):
                found = session.run(batches[index])
                if not np.allclose(found, expected[index], atol=TOLERANCE, rtol=0):
                    failures.append(f"thread {index} got another's answer")
        except Exception as error:  # noqa: BLE001  # told by the main thread
            failures.append(f"thread {index}: {error}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_close(session: Session, exported_nano: Path) -> None:
    """Twice is once; the sessions of the same file that are open go on."""
    name = next(n for n in BACKENDS if n == "onnxruntime" or "openvino" in session.runner.backend)
    opened = Session.open(exported_nano, backend=name, threads=1,
                          specialize=NEVER)  # fmt: skip
    with opened:
        opened.run(images(1, 32, 32))
    opened.close()
    assert session.run(images(1, 32, 32)).shape == (1, 1000)
