"""Every rewrite is an identity: proven in float64, for every EMSA shape and extreme attention."""

from __future__ import annotations

import copy

import msgspec
import pytest
import torch

from rest_deploy.cards import load_card
from rest_deploy.contracts import InstanceNormForm
from rest_deploy.errors import InvariantError
from rest_deploy.model.backbone import Backbone, Stage
from rest_deploy.model.cost import macs
from rest_deploy.model.deploy import rest, to_deploy
from rest_deploy.model.deploy.rest import (
    REWRITES,
    DeployAttention,
    FoldedNorm,
    OneHeadAttention,
    rewrites,
)
from rest_deploy.model.deploy.split import DeployStage
from rest_deploy.model.rest import EfficientAttention, ResT
from tests.model.weights import golden_image, relative, set_golden

FORMS: tuple[InstanceNormForm, ...] = ("folded", "native", "decomposed")
BOUND = 1e-11


def reference(variant: str = "nano", **changes: object) -> ResT:
    architecture = msgspec.structs.replace(load_card(variant).architecture, **changes)
    return set_golden(ResT(architecture, 11))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(32, 32), (97, 131), (96, 160)])
def test_deployed_equals_the_reference(form: InstanceNormForm, size: tuple[int, int]) -> None:
    module = reference()
    deployed, _ = to_deploy(module, form)
    with torch.inference_mode():
        assert relative(deployed(golden_image(*size)), module(golden_image(*size))) < BOUND


@pytest.mark.parametrize(("mix", "norm"), [(True, False), (False, False)])
@pytest.mark.parametrize("encoding", ["gl", "none"])
def test_ablations_are_rewritten_too(mix: bool, norm: bool, encoding: str) -> None:
    module = reference(head_mix=mix, attention_norm=norm, position_encoding=encoding)
    deployed, fired = to_deploy(module)
    assert fired["fold_instance_norm"] == 0
    image = golden_image(64, 96)
    with torch.inference_mode():
        assert relative(deployed(image), module(image)) < BOUND


def test_every_rewrite_fires_where_it_should() -> None:
    _, fired = to_deploy(reference())
    assert fired == {
        "name_no_sizes": 4,
        "fold_batch_norm": 5,
        "split_key_value": 5,
        "fold_scale": 5,
        "drop_key_bias": 5,
        "drop_mix_bias": 4,  # stage 1 has one head: no mix
        "move_value_bias": 5,
        "merge_one_head": 1,
        "fold_instance_norm": 4,
    }


@pytest.mark.parametrize("count", range(1, len(REWRITES) + 1))
def test_each_rewrite_alone_keeps_the_function(count: int) -> None:
    """A prefix of the list at a time, so that a wrong rewrite is named by the first red case."""
    module = reference()
    rewritten = copy.deepcopy(module)
    for rewrite in REWRITES[:count]:
        rewrite(rewritten)
    if count < 3:  # before split_key_value the attention takes the reference's own stages
        rewritten = copy.deepcopy(module)
        for rewrite in REWRITES[1:count]:
            rewrite(rewritten)
    with torch.inference_mode():
        assert relative(rewritten(golden_image(64, 96)), module(golden_image(64, 96))) < BOUND


def test_the_module_handed_in_is_untouched() -> None:
    module = reference()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_deploy(module)
    assert isinstance(module.stage1[0].attn, EfficientAttention)
    assert type(module.stage1) is Stage
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_float32_comes_back_as_float32() -> None:
    deployed, _ = to_deploy(ResT(load_card("nano").architecture, 3).eval())
    assert {p.dtype for p in deployed.parameters()} == {torch.float32}
    assert isinstance(deployed.stage3, DeployStage)


def test_a_rewrite_that_misses_a_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fold_batch_norm(_model: Backbone) -> int:
        return 4

    monkeypatch.setattr(rest, "REWRITES", (fold_batch_norm, *REWRITES[2:]))
    with pytest.raises(InvariantError, match="fold_batch_norm fired 4 times, expected 5"):
        to_deploy(reference())


SHAPES = [
    (dim, heads, sr)
    for variant in ("nano", "lite", "base")
    for dim, heads, sr in zip(
        load_card(variant).architecture.dims,
        load_card(variant).architecture.heads,
        load_card(variant).architecture.sr_ratios,
        strict=True,
    )
]


@pytest.mark.parametrize(("dim", "heads", "sr"), SHAPES)
@pytest.mark.parametrize("attention", ["ordinary", "near-uniform", "one-hot", "one key"])
@pytest.mark.parametrize("form", FORMS)
def test_attention_forms(dim: int, heads: int, sr: int, attention: str, form: str) -> None:
    """Sharpness is set by q: 1e-4 makes rows uniform to 1e-6, 1e4 makes them one-hot."""
    torch.manual_seed(dim + sr)
    module = EfficientAttention(dim, heads, sr, qkv_bias=True, mix=True, norm=True).double()
    factor = {"near-uniform": 1e-4, "one-hot": 1e4}.get(attention, 1.0)
    side = sr if attention == "one key" else 3 * sr + 1
    with torch.no_grad():
        module.q.weight.mul_(factor)
        module.q.bias.mul_(factor)
    grid = torch.randn(2, dim, side, side, dtype=torch.float64)
    tokens = grid.flatten(2).transpose(1, 2)
    holder = _holder(module, form)
    with torch.inference_mode():
        expected, actual = module(tokens, grid), holder(tokens, grid)
    # near-uniform: the reference's own mean over N x M is exact to 1e-16 / 1e-6 of the map
    bound = 1e-9 if attention == "near-uniform" else BOUND
    assert relative(actual, expected) < bound


def test_folded_norm_negative_controls() -> None:
    """Dropping any part of the folded form is far outside the bound."""
    torch.manual_seed(0)
    p = torch.randn(2, 4, 30, 7, dtype=torch.float64).softmax(-1)
    v = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    expected = torch.nn.functional.instance_norm(p) @ v
    centred, scaled = FoldedNorm()(p, v)
    assert relative(centred @ scaled, expected) < BOUND
    assert relative(p @ scaled, expected) < BOUND  # v is centred: rows of 1/M add nothing
    assert relative(p @ v, expected) > 0.1
    assert relative(centred @ v, expected) > 0.1
    assert relative(centred @ (scaled * 1.01), expected) > 1e-3


def test_one_head_negative_controls() -> None:
    """Each part of the merged attention matters, q's bias among them."""
    torch.manual_seed(0)
    module = EfficientAttention(32, 1, 8, qkv_bias=True, mix=True, norm=True).double()
    with torch.no_grad():
        module.q.bias.mul_(10)
    grid = torch.randn(2, 32, 24, 24, dtype=torch.float64)
    tokens = grid.flatten(2).transpose(1, 2)
    with torch.inference_mode():
        expected = module(tokens, grid)
        for part in ("k", "k_offset", "v", "bias"):
            merged = _holder(module, "folded")
            assert relative(merged(tokens, grid), expected) < BOUND
            changed = getattr(merged, part)
            (changed if part == "bias" else changed.weight).mul_(0.9)
            assert relative(merged(tokens, grid), expected) > 1e-4, part


def test_one_head_without_bias() -> None:
    module = reference(qkv_bias=False)
    deployed, fired = to_deploy(module)
    assert fired["merge_one_head"] == 1
    with torch.inference_mode():
        assert relative(deployed(golden_image(64, 96)), module(golden_image(64, 96))) < BOUND


def test_one_head_saves_two_products_over_all_tokens() -> None:
    """At 224: q and proj take 3136 tokens * 32 * 32 each, q's bias one column for 49 keys."""
    module = ResT(load_card("nano").architecture)
    saved = macs(module, 224, 224) - macs(to_deploy(module)[0], 224, 224)
    assert saved == 2 * 3136 * 32 * 32 - 49 * 32


def _holder(module: EfficientAttention, form: str) -> DeployAttention | OneHeadAttention:
    """The attention after all rewrites, through the public list."""
    model = ResT(load_card("nano").architecture, 0).double()
    model.stage4[0].attn = copy.deepcopy(module)
    for rewrite in rewrites(form):  # type: ignore[arg-type]  # parametrized str
        rewrite(model)
    attention = model.stage4[0].attn
    if module.heads == 1:
        assert isinstance(attention, OneHeadAttention)
        return attention
    assert isinstance(attention, DeployAttention)
    return attention
