"""Maps at a detector's size, and retrieval by embeddings, against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rest_deploy import photos, verbs
from rest_deploy.model.reference import Reference
from rest_deploy.preprocess import to_tensor
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import Images, Request
from rest_deploy.verify import gate, metrics
from rest_deploy.verify.parity import Case, load_reference, synthetic_images
from tests.conftest import TRAINED_WEIGHTS


@pytest.mark.slow
def test_the_pyramid_of_lite_at_a_detectors_size(tmp_path: Path) -> None:
    """800x1333 divides by no stride; every map within 1e-5 of float64, and not by being small."""
    report = verbs.export("lite", output_dir=tmp_path, outputs=("features",))
    session = Session.open(report.path)
    images = synthetic_images(Case(batch=1, height=800, width=1333))
    found = session.run_all(images)
    exact = Reference(load_reference(session.metadata), outputs=session.metadata.gives).all(images)
    assert [found[name].shape for name in ("c2", "c3", "c4", "c5")] == [
        (1, 64, 200, 334), (1, 128, 100, 167), (1, 256, 50, 84), (1, 512, 25, 42)
    ]  # fmt: skip
    for name, expected in exact.items():
        assert metrics.relative_error(expected, found[name]) < 1e-5
        assert metrics.relative_error(expected, np.roll(found[name], 1, axis=3)) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_retrieval_at_int8(tmp_path: Path, backend: str) -> None:
    """Of photo crops: the nearest other one by INT8 embeddings is float64's for 99 % of them."""
    pytest.importorskip(backend)
    report = verbs.export(
        "nano", output_dir=tmp_path, checkpoint=TRAINED_WEIGHTS, outputs=("embedding",),
        unit_length=True, input_kind="uint8",
    )  # fmt: skip
    built = verbs.build_engine(
        None, Request(precision="int8", images=Images(limit=256)), workspace=tmp_path,
        backend=backend,
    )  # fmt: skip
    preprocessing = report.metadata.card.preprocessing
    crops = photos.crops("test", 512, seed=7)
    images = np.stack([to_tensor(photos.load(crop), preprocessing) for crop in crops])
    outputs = report.metadata.gives
    exact = Reference(load_reference(report.metadata), outputs=outputs).all
    expected = gate.answers(exact, images, outputs)["embedding"]
    with Session.open(built.path) as session:
        found = gate.answers(session.run_normalized, images, outputs)["embedding"]
    kept = metrics.neighbours_kept(expected, found)
    print(f"{backend}: {kept:.2%} of {len(images)} neighbours kept")
    assert kept >= 0.99
