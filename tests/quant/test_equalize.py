"""Equalization is exact in float and evens the channels out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from rest_deploy.quant.equalize import equalize, sites
from rest_deploy.quant.extents import Extent, measure
from rest_deploy.quant.insert_qdq import observed_tensors
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images

IMAGES = synthetic_images(Case(batch=2, height=64, width=96))


@pytest.fixture(scope="module")
def observed(exported_nano: Path) -> dict[str, Extent]:
    model = ir.load(exported_nano)
    tensors = observed_tensors(model, load_recipe("int8"))
    return measure(model, tensors, lambda _done: [IMAGES])


def channels(observed: dict[str, Extent]) -> dict[str, npt.NDArray[np.float32]]:
    return {name: seen.channel_largest for name, seen in observed.items()}


def spread(extent: Extent) -> float:
    """Largest channel over the geometric mean of all."""
    channels = extent.channel_largest.astype(np.float64)
    return float(channels.max() / np.exp(np.log(channels[channels > 0]).mean()))


def test_sites_of_nano(exported_nano: Path) -> None:
    """5 blocks: norm1, norm2, v -> proj; 4 with a reduction: its norm; the head's norm; 2 ReLUs.
    The block with one head has norm2 alone: its tokens meet the keys, and it has no proj."""
    found = list(sites(ir.load(exported_nano)))
    kinds = Counter(site.activation.removesuffix(".LayerNormalization.out")[-5:] for site in found)
    assert len(found) == 5 * 3 - 2 + 4 + 1 + 2
    assert (kinds["norm1"], kinds["norm2"]) == (4, 5)
    reduced = [site for site in found if site.followers]
    assert len(reduced) == 3
    assert all(name.endswith("attn.sr.weight") for site in reduced for name, _ in site.followers)


def test_the_function_stays(
    exported_nano: Path, observed: dict[str, Extent], tmp_path: Path
) -> None:
    model = ir.load(exported_nano)
    assert len(equalize(model, channels(observed), 0.5)) == 20 + 3  # and the reductions' maps
    ir.save(model, tmp_path / "equalized.onnx")
    before = Session.open(exported_nano).run(IMAGES).astype(np.float64)
    assert relative_error(before, Session.open(tmp_path / "equalized.onnx").run(IMAGES)) < 1e-5


def test_one_forgotten_reader_is_noticed(
    exported_nano: Path, observed: dict[str, Extent], tmp_path: Path
) -> None:
    """The comparison above is sharp enough to see a reduction that was not rescaled."""
    model = ir.load(exported_nano)
    kept = model.graph.initializers["stage2.0.attn.sr.weight"].const_value
    equalize(model, channels(observed), 0.5)
    model.graph.initializers["stage2.0.attn.sr.weight"].const_value = kept
    ir.save(model, tmp_path / "broken.onnx")
    before = Session.open(exported_nano).run(IMAGES).astype(np.float64)
    assert relative_error(before, Session.open(tmp_path / "broken.onnx").run(IMAGES)) > 1e-4


def test_channels_are_evener(exported_nano: Path, observed: dict[str, Extent]) -> None:
    model = ir.load(exported_nano)
    equalize(model, channels(observed), 0.5)
    tensors = observed_tensors(model, load_recipe("int8"))
    after = measure(model, tensors, lambda _done: [IMAGES])
    rescaled = [site.activation for site in sites(model)]
    ratios = [spread(after[name]) / spread(observed[name]) for name in rescaled]
    assert np.median(ratios) < 0.95


def test_alpha_zero_moves_nothing(exported_nano: Path, observed: dict[str, Extent]) -> None:
    assert equalize(ir.load(exported_nano), channels(observed), 0.0) == {}
