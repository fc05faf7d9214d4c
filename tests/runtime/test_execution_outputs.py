"""Engines of several outputs, and of pixels, on a simulated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rest_deploy.engine import tensorrt
from rest_deploy.errors import InputError, ShapeError
from rest_deploy.runtime.session import Session
from rest_deploy.runtime.tensorrt import GpuOptions, TensorRtRunner
from rest_deploy.verify.parity import Case, images_for, synthetic_images
from tests.doubles.cuda import SimulatedCuda
from tests.doubles.tensorrt import SimulatedTensorRt
from tests.runtime.test_execution import ENGINE, SMALL, WIDE
from tests.runtime.test_on_device import OnDevice

real = pytest.importorskip("tensorrt_rtx_bindings")
NAMES = ["logits", "probabilities", "embedding", "c2", "c3", "c4", "c5"]


def opened(graph: Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Session:
    module = SimulatedTensorRt(real, "tensorrt", cuda)
    module.know(ENGINE, graph, (SMALL, WIDE))
    monkeypatch.setattr(tensorrt, "load", lambda _: module)
    runner = TensorRtRunner(ENGINE, "tensorrt", cuda, GpuOptions(graphs=2))
    return Session(runner, Session.open(graph).metadata, graph, None)


@pytest.fixture
def cuda() -> SimulatedCuda:
    return SimulatedCuda()


@pytest.fixture
def session(
    everything_nano: Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Session]:
    with opened(everything_nano, cuda, monkeypatch) as found:
        yield found
    assert cuda.held() == dict.fromkeys(cuda.held(), 0)


def check(session: Session, reference: Session, batch: int, height: int, width: int) -> None:
    make = images_for(session.metadata, synthetic_images)
    images = session.feed(make(Case(batch=batch, height=height, width=width)))
    found, expected = session.run_all(images), reference.run_all(images)
    assert list(found) == NAMES
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert np.abs(found[name] - array).max() < 1e-4


def test_every_output_at_every_shape(
    session: Session, everything_nano: Path, cuda: SimulatedCuda
) -> None:
    """First time, graph captured, graph launched, and buffers grown in between."""
    reference = Session.open(everything_nano, threads=1)
    for height, width in ((33, 64), (64, 47), (96, 160), (33, 64)):
        for _ in range(3):
            check(session, reference, 1, height, width)
    assert cuda.launches > 0
    lane = session.runner.lanes()[0]  # type: ignore[attr-defined]  # an engine's runner
    assert (1, 3, 96, 160) in lane.captured
    check(session, reference, 2, 96, 160)
    assert lane.captured == (), "their outputs lay where there was no room for two images"
    session.run(synthetic_images(Case(batch=1, height=64, width=64)))


def test_pixels(pixels_nano: Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles hold (batch, 3, height, width), the engine's own are (N, H, W, 3)."""
    with opened(pixels_nano, cuda, monkeypatch) as session:
        runner = session.runner
        assert isinstance(runner, TensorRtRunner)
        assert runner.profiles == (SMALL, WIDE)
        assert runner.inputs[0].shape == ("?", "?", "?", 3)
        assert runner.inputs[0].dtype == "uint8"
        check(session, Session.open(pixels_nano, threads=1), 2, 64, 47)
        with pytest.raises(ShapeError, match="nearest of its 2 profiles"):
            session.run(np.zeros((1, 512, 512, 3), np.uint8))
        with pytest.raises(ShapeError, match="expected uint8"):
            runner.infer({"image": np.zeros((1, 64, 64, 4), np.uint8)})


def test_on_the_device(session: Session, everything_nano: Path, cuda: SimulatedCuda) -> None:
    """All by name, some of them where the caller wants them; or the first one alone."""
    images = synthetic_images(Case(batch=2, height=64, width=48))
    expected = Session.open(everything_nano, threads=1).run_all(images)
    source = OnDevice(cuda, images)
    target = OnDevice(cuda, np.zeros_like(expected["c4"]))
    found = session.run_all_on_device(source.array, out={"c4": target.array})
    assert list(found) == NAMES
    assert found["c4"].pointer == target.array.pointer
    for name, array in expected.items():
        assert np.abs(np.from_dlpack(found[name]) - array).max() < 1e-4
    first = session.run_on_device(source.array)
    assert np.abs(np.from_dlpack(first) - expected["logits"]).max() < 1e-4
    with pytest.raises(InputError, match="no output 'c1', but logits, probabilities"):
        session.run_all_on_device(source.array, out={"c1": target.array})
    with pytest.raises(ShapeError, match=r"the output c3 as float32 of shape .*; expected float32"):
        session.run_all_on_device(source.array, out={"c3": target.array})
    session.run(images)


def test_pixels_on_the_device(
    pixels_nano: Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(pixels_nano, cuda, monkeypatch) as session:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
        expected = Session.open(pixels_nano, threads=1).run(pixels)
        found = session.run_on_device(OnDevice(cuda, pixels).array)
        assert np.abs(np.from_dlpack(found) - expected).max() < 1e-4
        wrong = OnDevice(cuda, np.zeros((2, 3, 64, 48), np.uint8))
        with pytest.raises(ShapeError, match="expected uint8 of shape"):
            session.run_on_device(wrong.array)
