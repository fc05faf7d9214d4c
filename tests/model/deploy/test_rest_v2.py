"""Every rewrite of v2 is an identity, proven in float64; nothing of a size is left in it."""

from __future__ import annotations

import copy

import msgspec
import pytest
import torch
from torch import Tensor, nn

from rest_deploy.cards import load_card
from rest_deploy.model.cost import macs
from rest_deploy.model.deploy import to_deploy
from rest_deploy.model.deploy.rest_v2 import (
    REWRITES,
    DeployAttention,
    FoldedStem,
    OneHeadAttention,
    merge_one_head,
)
from rest_deploy.model.deploy.weights import drop_bias
from rest_deploy.model.rest_v2 import ResTV2, Stem, UpsampledAttention
from tests.model.weights import golden_image, relative, set_golden

BOUND = 1e-12
SIZES = [(32, 32), (97, 131), (96, 160), (200, 225)]


def reference(variant: str = "v2-nano", **changes: object) -> ResTV2:
    architecture = msgspec.structs.replace(load_card(variant).architecture, **changes)
    return set_golden(ResTV2(architecture, 11))


@pytest.mark.parametrize("size", SIZES)
def test_deployed_equals_the_reference(size: tuple[int, int]) -> None:
    module = reference()
    deployed, _ = to_deploy(module)
    with torch.inference_mode():
        assert relative(deployed(golden_image(*size)), module(golden_image(*size))) < BOUND


def test_without_position_encoding() -> None:
    module = reference(position_encoding="none")
    with torch.inference_mode():
        expected = module(golden_image(64, 96))
        assert relative(to_deploy(module)[0](golden_image(64, 96)), expected) < BOUND


def test_every_rewrite_fires_where_it_should() -> None:
    _, fired = to_deploy(reference())
    assert fired == {
        "name_no_sizes": 4,
        "fold_batch_norm": 2,
        "split_key_value": 5,
        "fold_scale": 5,
        "drop_key_bias": 5,
        "merge_one_head": 1,
    }
    _, fired = to_deploy(reference(heads=(2, 2, 4, 8)))
    assert fired["merge_one_head"] == 0


@pytest.mark.parametrize("count", range(1, len(REWRITES) + 1))
def test_each_rewrite_alone_keeps_the_function(count: int) -> None:
    """A prefix of the list at a time, so that a wrong rewrite is named by the first red case."""
    module = reference()
    rewritten = copy.deepcopy(module)
    fired = [rewrite(rewritten) for rewrite in REWRITES[:count]]
    assert all(fired)
    with torch.inference_mode():
        assert relative(rewritten(golden_image(64, 96)), module(golden_image(64, 96))) < BOUND


def test_the_module_handed_in_is_untouched() -> None:
    module = reference()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    deployed, _ = to_deploy(module)
    assert isinstance(deployed.stem, FoldedStem)
    assert isinstance(module.stem, Stem)
    assert isinstance(module.stage1[0].attn, UpsampledAttention)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


SHAPES = [
    (dim, heads, sr)
    for variant in ("v2-nano", "v2-tiny", "v2-large")
    for dim, heads, sr in zip(
        load_card(variant).architecture.dims,
        load_card(variant).architecture.heads,
        load_card(variant).architecture.sr_ratios,
        strict=True,
    )
]


def attention(dim: int, heads: int, sr: int) -> UpsampledAttention:
    torch.manual_seed(dim + sr)
    return UpsampledAttention(dim, heads, sr).double().requires_grad_(False)


def tokens(dim: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    grid = torch.randn(2, dim, height, width, dtype=torch.float64)
    return grid.flatten(2).transpose(1, 2), grid


def deployed(module: UpsampledAttention) -> nn.Module:
    """The attention after all rewrites, through the public list."""
    model = ResTV2(load_card("v2-nano").architecture, 0).double().requires_grad_(False)
    model.stage4[0].attn = copy.deepcopy(module)
    for rewrite in REWRITES:
        rewrite(model)
    found: nn.Module = model.stage4[0].attn
    assert isinstance(found, OneHeadAttention if module.heads == 1 else DeployAttention)
    return found


@pytest.mark.parametrize(("dim", "heads", "sr"), SHAPES)
@pytest.mark.parametrize("kind", ["ordinary", "near-uniform", "one-hot", "one key"])
def test_attention_forms(dim: int, heads: int, sr: int, kind: str) -> None:
    """Sharpness is set by q: 1e-4 makes rows uniform to 1e-6, 1e4 makes them one-hot. Height no
    multiple of the ratio, width one."""
    module = attention(dim, heads, sr)
    factor = {"near-uniform": 1e-4, "one-hot": 1e4}.get(kind, 1.0)
    module.q.weight.mul_(factor)
    module.q.bias.mul_(factor)
    inputs = tokens(dim, *((1, sr) if kind == "one key" else (3 * sr - 1, 2 * sr)))
    # One-hot: scores near 1e4, whose rounding decides between keys that are nearly as near.
    bound = 1e-9 if kind == "one-hot" else BOUND
    assert relative(deployed(module)(*inputs), module(*inputs)) < bound


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("part", ["k", "v", "up", "up_norm", "proj", "sr", "sr_norm"])
def test_negative_controls(heads: int, part: str) -> None:
    """Every part of the rewritten attention shows in its result."""
    module = attention(32, heads, 4)
    inputs = tokens(32, 10, 9)
    expected = module(*inputs)
    changed = deployed(module)
    assert relative(changed(*inputs), expected) < BOUND
    getattr(changed, part).weight.mul_(0.9)
    assert relative(changed(*inputs), expected) > 1e-5


def test_the_bias_of_q_is_not_forgotten() -> None:
    module = attention(32, 1, 8)
    module.q.bias.mul_(10)
    inputs = tokens(32, 24, 24)
    changed = deployed(module)
    assert relative(changed(*inputs), module(*inputs)) < BOUND
    assert isinstance(changed, OneHeadAttention)
    assert changed.k_offset is not None
    changed.k_offset.weight.mul_(0.9)
    assert relative(changed(*inputs), module(*inputs)) > 1e-5


def test_why_the_bias_of_v_stays() -> None:
    """Moved behind attention and branch, as if the branch were blind to it at the border."""
    module = attention(32, 2, 4)
    inputs = tokens(32, 8, 8)
    moved = DeployAttention(copy.deepcopy(module))
    bias = drop_bias(moved.v)
    assert bias is not None
    assert moved.up.bias is not None
    taps = moved.up.weight.sum(dim=(1, 2, 3)) * bias.repeat_interleave(16)
    moved.up.bias = nn.Parameter(moved.up.bias + taps, requires_grad=False)
    moved.proj.bias = nn.Parameter(moved.proj.bias + moved.proj.weight @ bias, requires_grad=False)
    assert relative(moved(*inputs), module(*inputs)) > 1e-4


def test_one_head_saves_a_product_over_all_tokens() -> None:
    """At 224: q takes 3136 tokens * 32 * 32, its bias one column for 49 keys."""
    module = ResTV2(load_card("v2-nano").architecture)
    saved = macs(module, 224, 224) - macs(to_deploy(module)[0], 224, 224)
    assert saved == 3136 * 32 * 32 - 49 * 32


def test_a_second_pass_finds_nothing() -> None:
    deployed_model, _ = to_deploy(reference())
    assert merge_one_head(deployed_model) == 0
    assert [rewrite(deployed_model) for rewrite in REWRITES[1:3]] == [0, 0]
