"""Several outputs and pixels as input, as a session gives and takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rest_deploy.contracts import HostBackend
from rest_deploy.errors import ArtifactError, ImageError, ShapeError
from rest_deploy.layout import UINT8
from rest_deploy.preprocess import load_image, to_pixels
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.embedder import Embedder
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, images_for, load_reference, synthetic_images

NAMES = ["logits", "probabilities", "embedding", "c2", "c3", "c4", "c5"]
BACKENDS: tuple[HostBackend, ...] = ("onnxruntime", "openvino")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> HostBackend:
    pytest.importorskip(request.param)
    found: HostBackend = request.param
    return found


def test_all_of_them_by_name(everything_nano: Path, backend: HostBackend) -> None:
    with Session.open(everything_nano, backend=backend, threads=1) as session:
        images = synthetic_images(Case(batch=2, height=97, width=131))
        found = session.run_all(images)
        assert list(found) == NAMES
        dims = session.metadata.card.architecture.dims
        shapes = [found[name].shape for name in NAMES]
        assert shapes == [
            (2, 22), (2, 22), (2, dims[3]), (2, dims[0], 25, 33), (2, dims[1], 13, 17),
            (2, dims[2], 7, 9), (2, dims[3], 4, 5),
        ]  # fmt: skip
        assert {array.dtype for array in found.values()} == {np.dtype("float32")}
        np.testing.assert_array_equal(session.run(images), found["logits"])
        spread = np.exp(found["logits"] - found["logits"].max(axis=1, keepdims=True))
        np.testing.assert_allclose(
            found["probabilities"], spread / spread.sum(axis=1, keepdims=True), rtol=1e-4
        )


def test_pixels_give_what_normalized_images_give(
    everything_nano: Path, pixels_nano: Path, backend: HostBackend
) -> None:
    """Sizes that no stride divides; the border is where a folded normalization would show."""
    plain = Session.open(everything_nano, backend=backend, threads=1)
    session = Session.open(pixels_nano, backend=backend, threads=1)
    for height, width in ((97, 131), (64, 48)):
        make = images_for(session.metadata, synthetic_images)
        images = make(Case(batch=2, height=height, width=width))
        pixels = session.feed(images)
        assert (str(pixels.dtype), pixels.shape) == ("uint8", (2, height, width, 3))
        found, expected = session.run_all(pixels), plain.run_all(images)
        for name in set(NAMES) - {"embedding"}:
            assert relative_error(expected[name], found[name]) < 1e-5
            border = [array[..., 0] for array in (expected[name], found[name])]
            assert relative_error(*border) < 1e-5
        np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-6)
    session.close()
    plain.close()


def test_the_other_input_is_refused(everything_nano: Path, pixels_nano: Path) -> None:
    floats = np.zeros((1, 3, 64, 64), np.float32)
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    with Session.open(pixels_nano, threads=1) as session:
        session.run(pixels)
        for call in (session.run, session.run_all):
            with pytest.raises(ShapeError, match=r"got float32 .* expected uint8 \(batch, height"):
                call(floats)
    with (
        Session.open(everything_nano, threads=1) as session,
        pytest.raises(ShapeError, match=r"got uint8 .* expected float32 \(batch, 3"),
    ):
        session.run_all(pixels)


def test_only_pixels_can_be_fed_as_pixels(pixels_nano: Path) -> None:
    images = synthetic_images(Case(batch=1, height=64, width=64))
    with (
        Session.open(pixels_nano, threads=1) as session,
        pytest.raises(ImageError, match="not normalized 8-bit pixels"),
    ):
        session.run_normalized(images)


def test_shapes_are_warmed_up_in_the_models_layout(pixels_nano: Path, backend: HostBackend) -> None:
    with Session.open(pixels_nano, backend=backend, threads=1) as session:
        session.warm_up([(2, 3, 64, 96)])
        if backend == "openvino":
            assert session.runner.shapes == (UINT8.shape((2, 3, 64, 96)),)  # type: ignore[attr-defined]  # of a specializing one
        assert session.run(np.zeros((2, 64, 96, 3), np.uint8)).shape == (2, 22)


def test_reference_gives_the_same(pixels_nano: Path) -> None:
    from rest_deploy.model.reference import Reference

    with Session.open(pixels_nano, threads=1) as session:
        make = images_for(session.metadata, synthetic_images)
        images = make(Case(batch=1, height=75, width=64))
        exact = Reference(load_reference(session.metadata), outputs=session.metadata.gives)
        found = session.run_normalized(images)
        for name, expected in exact.all(images).items():
            assert relative_error(expected, found[name]) < 1e-5
            assert relative_error(expected, found[name] * 1.01) > 1e-3


def test_classes_of_probabilities_and_pixels(everything_nano: Path, pixels_nano: Path) -> None:
    """No second softmax, the same answers from either input."""
    photo = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    first = Classifier.open(everything_nano, threads=1)
    (expected,) = first.classify(photo, top=1)
    (found,) = Classifier.open(pixels_nano, threads=1).classify(photo, top=1)
    assert found.label == expected.label
    assert abs(found.probability - expected.probability) < 1e-5
    first._scores = first.session.metadata.gives[1]
    (again,) = first.classify(photo, top=1)
    assert again.label == expected.label
    assert abs(again.probability - expected.probability) < 1e-5


def test_embeddings(pixels_nano: Path, trained_nano: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    embedder = Embedder.open(pixels_nano, threads=1)
    vector = embedder.embed(photo)
    preprocessing = embedder.session.metadata.card.preprocessing
    pixels = to_pixels(load_image(photo), preprocessing)
    np.testing.assert_array_equal(vector, embedder.session.run_all(pixels[None])["embedding"][0])
    assert abs(float(vector @ vector) - 1) < 1e-5
    assert embedder.embed_batch([]).shape == (0, vector.shape[0])
    with pytest.raises(ArtifactError, match=r"gives no embedding, but logits .*export --output"):
        Embedder.open(trained_nano)
