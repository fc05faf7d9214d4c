"""Equalization is exact in float and evens the channels out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
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


# --- a branch beside the attention (ResT v2) -------------------------------------------------

UP = "stage2.0.attn.up.weight"


@pytest.fixture(scope="module")
def observed_v2(trained_v2_nano: Path) -> dict[str, Extent]:
    model = ir.load(trained_v2_nano)
    return measure(model, observed_tensors(model, WITH_UP), lambda _done: [IMAGES])


WITH_UP = msgspec.structs.replace(
    load_recipe("int8"), quantize=(*load_recipe("int8").quantize, "up")
)
"""The branch's convolution too, so that the range of its input is told."""


def test_sites_of_v2(trained_v2_nano: Path) -> None:
    """As in v1, and v -> proj in the block with one head too: it has kept proj."""
    found = list(sites(ir.load(trained_v2_nano)))
    assert len(found) == 5 * 3 - 1 + 4 + 1 + 2
    branches = [
        site for site in found if any(name.endswith("up.weight") for name, _ in site.followers)
    ]
    assert len(branches) == 5
    for site in branches:
        names = {name.split(".attn.")[1] for name, _ in site.sources}
        assert len(names) == 4
        assert {"up_norm.weight", "up_norm.bias", "v.bias"} <= names
        assert [name.split(".attn.")[1] for name, _ in site.readers] == ["proj.weight.T"]


def equalized_v2(path: Path, observed: dict[str, Extent], folder: Path, keep: str = "") -> float:
    """Error of the logits after equalization with the initializer `keep` put back."""
    model = ir.load(path)
    initializers = model.graph.initializers
    kept = initializers[keep].const_value if keep else None
    equalize(model, channels(observed), 0.5)
    if keep:
        initializers[keep].const_value = kept
    ir.save(model, folder / "equalized.onnx")
    before = Session.open(path).run(IMAGES).astype(np.float64)
    return relative_error(before, Session.open(folder / "equalized.onnx").run(IMAGES))


def test_the_function_of_v2_stays(
    trained_v2_nano: Path, observed_v2: dict[str, Extent], tmp_path: Path
) -> None:
    assert equalized_v2(trained_v2_nano, observed_v2, tmp_path) < 1e-5


@pytest.mark.parametrize(
    "part", ["up.weight", "up_norm.weight", "up_norm.bias", "v.bias", "sr.weight"]
)
def test_every_part_of_the_branch_is_rescaled(
    trained_v2_nano: Path, observed_v2: dict[str, Extent], tmp_path: Path, part: str
) -> None:
    keep = f"stage2.0.attn.{part}"
    assert equalized_v2(trained_v2_nano, observed_v2, tmp_path, keep) > 1e-4


def test_ranges_of_the_branch_follow(trained_v2_nano: Path, observed_v2: dict[str, Extent]) -> None:
    """What equalization says it divided by is what the tensors are divided by, the map of v too."""
    model = ir.load(trained_v2_nano)
    factors = equalize(model, channels(observed_v2), 0.5)
    after = measure(model, observed_tensors(model, WITH_UP), lambda _done: [IMAGES])
    convolution = next(n for n in model.graph if n.name == "stage2.0.attn.up.Conv")
    value = convolution.inputs[0]
    assert value is not None
    for name in (value.name or "", *factors):
        if name in observed_v2:
            expected = observed_v2[name].channel_largest / factors[name]
            np.testing.assert_allclose(after[name].channel_largest, expected, rtol=1e-3)


def test_a_proj_that_reads_something_else_is_left_alone(trained_v2_nano: Path) -> None:
    model = ir.load(trained_v2_nano)
    proj = next(n for n in model.graph if n.name == "stage2.0.attn.proj.MatMul")
    total = proj.inputs[0].producer() if proj.inputs[0] is not None else None
    assert total is not None
    total.replace_input_with(0, total.inputs[1])  # the branch twice, the context not at all
    assert len(list(sites(model))) == 5 * 3 - 1 + 4 + 1 + 2 - 1
