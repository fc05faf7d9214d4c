"""The self-test an engine is published with: its photos, whose answers, which bound."""

from __future__ import annotations

import base64
import io
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rest_deploy import photos, verbs
from rest_deploy.artifact import read_sidecar, sidecar_path
from rest_deploy.contracts import Profile
from rest_deploy.errors import SelfTestError
from rest_deploy.runtime import arrival
from rest_deploy.runtime.session import Session
from rest_deploy.selftest import SelfTest
from rest_deploy.verbs import Images, Request, probes
from rest_deploy.verbs.gate import reference_answers
from rest_deploy.verify import gate

FP32 = Request(precision="fp32", images=Images(limit=16), gate_images=16)
INT8 = Request(precision="int8", images=Images(limit=16), gate_images=16)
UNGATED = Request(precision="int8", images=Images(limit=16), gate=False)


@pytest.fixture(scope="module")
def source(trained_nano: Path) -> Session:
    return Session.open(trained_nano)


def made(source: Session, request: Request, infer: gate.Infer | None) -> SelfTest:
    found = probes._made(source, request, infer, ())
    assert found is not None
    return found


def inputs(source: Session, selftest: SelfTest) -> npt.NDArray[np.float32]:
    """(probes, 3, H, W), normalized"""
    images = arrival.pixels_of(selftest)
    return np.stack([arrival.as_input(one, source.metadata) for one in images]).astype(np.float32)


def off_by(source: Session, part: float, of: Callable[[int], bool] = lambda _: True) -> gate.Infer:
    """The source's own answers, all of them or those of some calls a little larger."""
    calls = iter(range(100))

    def infer(images: npt.NDArray[np.float32]) -> Mapping[str, gate.Array]:
        factor = 1 + part if of(next(calls)) else 1
        return {name: found * factor for name, found in source.run_normalized(images).items()}

    return infer


def test_photos_with_the_references_answers(source: Session) -> None:
    found = made(source, FP32, source.run_normalized)
    assert found.reference == "PyTorch float64"
    assert (found.batch, len(found.probes)) == (1, probes.PROBES)
    images = arrival.pixels_of(found)
    for png, pixels in zip(found.probes, images, strict=True):
        assert pixels.shape == (224, 224, 3)
        assert pixels.std() > 20  # a photo, not a plane
        assert len(base64.b64decode(png)) <= probes.MOST_BYTES
    exact, _ = reference_answers(source, inputs(source, found), None)
    (logits,) = found.expected
    values = arrival.values_of(logits.values, logits.channels)
    np.testing.assert_allclose(values, exact["logits"], rtol=1e-6, atol=1e-6)
    assert logits.bound == source.metadata.card.parity.relative_error
    assert logits.built is not None
    assert 0 < logits.built < 1e-5


def test_the_bound_is_the_gates(source: Session) -> None:
    (within,) = made(source, INT8, off_by(source, 0.02)).expected
    assert within.bound == source.metadata.card.gate.of("int8").relative_error == 0.03
    assert within.built == pytest.approx(0.02, rel=1e-3)


def test_a_little_beyond_it_is_widened_for_what_passed_the_gate(source: Session) -> None:
    (one,) = made(source, INT8, off_by(source, 0.04)).expected
    assert one.bound == pytest.approx(0.05, rel=1e-3)
    (most,) = made(source, INT8, off_by(source, 0.055)).expected
    assert most.bound == pytest.approx(0.06)


def test_photos_that_mean_nothing_to_the_model(source: Session) -> None:
    """It passed the gate on its own images: elsewhere it is to answer as it did here."""
    found = made(source, INT8, off_by(source, 0.5))
    assert found.reference == probes.ITSELF
    (one,) = found.expected
    assert (one.bound, one.built) == (0.03, 0.0)
    exact = source.run_normalized(inputs(source, found))["logits"]
    values = arrival.values_of(one.values, one.channels)
    np.testing.assert_allclose(values, exact * np.float32(1.5), rtol=1e-4, atol=1e-4)


def test_nothing_is_widened_without_a_gate(source: Session) -> None:
    found = made(source, UNGATED, off_by(source, 0.5))
    assert found.reference == "the float export"
    (one,) = found.expected
    assert one.bound == 0.03
    assert one.built == pytest.approx(0.5, rel=1e-3)


def test_the_photos_on_which_it_keeps_the_bound(source: Session) -> None:
    plain = made(source, INT8, source.run_normalized)
    later = made(source, INT8, off_by(source, 0.5, lambda call: call == 0))
    assert plain.probes[0] not in later.probes
    assert plain.probes[1] == later.probes[0]
    assert later.expected[0].bound == 0.03


def test_an_engine_that_cannot_be_run_here(source: Session) -> None:
    found = made(source, INT8, None)
    (one,) = found.expected
    assert (found.reference, one.bound, one.built) == ("PyTorch float64", 0.03, None)


def test_answers_that_are_no_numbers(source: Session) -> None:
    assert probes._made(source, UNGATED, off_by(source, math.nan), ()) is None


def test_without_the_photos(source: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "available", lambda: False)
    found = made(source, FP32, source.run_normalized)
    first, second = arrival.pixels_of(found)
    assert first.shape == second.shape == (224, 224, 3)
    assert (first != second).any()
    assert made(source, FP32, source.run_normalized) == found  # of a seed


def profile(minimum: tuple[int, ...], maximum: tuple[int, ...]) -> Profile:
    return Profile(minimum=minimum, optimum=maximum, maximum=maximum)  # type: ignore[arg-type]  # of four


def test_a_shape_that_the_profiles_hold() -> None:
    assert probes._shape(224, ()) == ((224, 224), 1)
    wide = profile((1, 3, 32, 32), (8, 3, 512, 512))
    four = profile((4, 3, 224, 224), (8, 3, 224, 224))
    other = profile((2, 3, 96, 64), (2, 3, 96, 64))
    assert probes._shape(224, (four, wide)) == ((224, 224), 1)
    assert probes._shape(224, (four,)) == ((224, 224), 4)
    assert probes._shape(224, (other,)) == ((96, 64), 2)


def test_fewer_colours_until_it_is_small() -> None:
    rows = np.arange(224, dtype=np.uint8)
    smooth = np.stack(np.broadcast_arrays(rows, rows[:, None], rows[::-1]), axis=2)
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    counts = []
    for pixels in (np.ascontiguousarray(smooth), noise):
        image = Image.open(io.BytesIO(probes._png(pixels))).convert("RGB")
        counts.append(len(image.getcolors() or ()))
    assert counts == [probes.COLOURS[0], probes.COLOURS[-1]]


@pytest.mark.parametrize("kind", ["everything_nano", "pixels_nano"])
def test_every_output_from_floats_or_pixels(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = request.getfixturevalue(kind)
    shutil.copy(export, tmp_path)
    shutil.copy(sidecar_path(export), tmp_path)
    report = verbs.build_engine(None, FP32, workspace=tmp_path, backend="onnxruntime")
    sidecar = read_sidecar(Path(report.path))
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.selftest is not None
    expected = sidecar.build.selftest.expected
    assert [one.name for one in expected] == [one.name for one in sidecar.metadata.gives]
    assert all(one.built is not None and one.built <= one.bound for one in expected)
    Session.open(report.path).close()
    digest = arrival.digest

    def one_map_off(output: Any, values: Any) -> Any:
        found = digest(output, values)
        return found + np.float32(0.1) if output.name == "c3" else found

    monkeypatch.setattr(arrival, "digest", one_map_off)
    shutil.rmtree(Path(f"{report.path}.cache"))
    with pytest.raises(SelfTestError, match=": c3 against PyTorch float64"):
        Session.open(report.path)
