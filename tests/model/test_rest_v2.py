from __future__ import annotations

import json

import msgspec
import pytest
import torch

from rest_deploy.cards import available, load_card
from rest_deploy.errors import ShapeError
from rest_deploy.model.family import build
from rest_deploy.model.rest_v2 import ResTV2, UpsampledAttention
from tests.model.weights import GOLDEN, golden_image, official, relative, set_golden

PUBLISHED = ("tiny", "small", "base", "large")


def v2(size: str, num_classes: int = 1000) -> ResTV2:
    return ResTV2(load_card(f"v2-{size}").architecture, num_classes)


OFFICIAL = [
    pytest.param(variant, (64, 64), marks=[] if variant == "tiny" else pytest.mark.slow)
    for variant in PUBLISHED
]


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        *OFFICIAL,
        pytest.param("tiny", (96, 160), marks=pytest.mark.slow),
        pytest.param("large", (96, 160), marks=pytest.mark.slow),
    ],
)
def test_it_equals_the_official_outputs(variant: str, size: tuple[int, int]) -> None:
    module = set_golden(v2(variant))
    with torch.inference_mode():
        assert relative(module(golden_image(*size)), official(f"restv2_{variant}", *size)) < 1e-9


def test_every_part_shows_in_the_comparison() -> None:
    module = set_golden(v2("tiny"))
    expected, state = official("restv2_tiny", 64, 64), module.state_dict()
    with torch.inference_mode():
        for part in ("stem.norm.bias", "stage3.0.attn.up.0.weight", "patch_4.norm.weight"):
            state[part].mul_(1.01)
            assert relative(module(golden_image(64, 64)), expected) > 1e-6, part
            state[part].div_(1.01)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_state_dict_has_the_official_names_and_shapes(variant: str) -> None:
    stored = json.loads((GOLDEN / "state_dict_keys.json").read_text())[f"restv2_{variant}"]
    with torch.device("meta"):
        module = v2(variant)
    assert {name: list(v.shape) for name, v in module.state_dict().items()} == stored


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameter_count_is_the_published_one(variant: str) -> None:
    card = load_card(f"v2-{variant}")
    with torch.device("meta"):
        count = sum(p.numel() for p in v2(variant).parameters())
    assert card.published is not None
    assert round(count / 1e6) == card.published.parameters_m


def test_nano_is_small() -> None:
    with torch.device("meta"):
        module = ResTV2(available()["v2-nano"].architecture)
    assert sum(p.numel() for p in module.parameters()) <= 1_000_000


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 131), (200, 225), (32, 320)])
def test_any_size_from_32_works_and_is_batch_invariant(size: tuple[int, int]) -> None:
    module = set_golden(v2("nano", 7))
    image = golden_image(*size)
    with torch.inference_mode():
        together = module(image)
        alone = torch.cat([module(image[:1]), module(image[1:])])
    assert together.shape == (2, 7)
    assert torch.isfinite(together).all()
    assert relative(together, alone) < 1e-12


@pytest.mark.parametrize("shape", [(1, 3, 31, 31), (1, 3, 32, 31), (1, 1, 64, 64), (3, 64, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="at least 32"):
        v2("nano", 7)(torch.zeros(shape))


def test_the_branch_cuts_what_does_not_fit() -> None:
    """Rows and columns that are there keep their values: those of the larger, uncut map."""
    torch.manual_seed(0)
    attention = UpsampledAttention(6, 2, 4).double()
    values = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    whole = attention.branch(values, values.new_empty(2, 6, 12, 8)).reshape(2, 12, 8, 6)
    cut = attention.branch(values, values.new_empty(2, 6, 9, 7))
    assert torch.equal(cut, whole[:, :9, :7].reshape(2, 63, 6))


def test_features_are_the_maps_of_the_stages() -> None:
    module = v2("nano", 7).eval()
    with torch.inference_mode():
        found = module.features(torch.zeros(1, 3, 97, 131))
    assert [tuple(x.shape[1:]) for x in (found.c2, found.c3, found.c4, found.grid)] == [
        (32, 25, 33), (64, 13, 17), (96, 7, 9), (128, 4, 5)
    ]  # fmt: skip
    assert found.tokens.shape == (1, 20, 128)


def test_weights_are_initialized_as_published() -> None:
    torch.manual_seed(0)
    state = v2("nano", 7).state_dict()
    assert float(state["stage4.0.mlp.fc1.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(state["stage1.0.attn.up.0.weight"].std()) == pytest.approx(0.02, rel=0.05)
    biases = [name for name in state if name.endswith(".bias")]
    assert not any(state[name].any() for name in biases)


def test_the_norms_are_finer_than_v1s() -> None:
    norms = [m for m in v2("nano").modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 4 + 5 * 3 + 4 + 1  # of stem and embeddings, blocks, reductions, the last
    assert {norm.eps for norm in norms} == {1e-6}


def test_the_family_decides() -> None:
    architecture = load_card("v2-nano").architecture
    assert isinstance(build(architecture, 3), ResTV2)
    first = msgspec.structs.replace(architecture, family="rest")
    assert not isinstance(build(first, 3), ResTV2)


def test_no_head_and_no_position_encoding() -> None:
    architecture = msgspec.structs.replace(
        load_card("v2-nano").architecture, position_encoding="none"
    )
    module = ResTV2(architecture, 0).eval()
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 128)
    assert not any(name.startswith("head") or "pa_conv" in name for name in module.state_dict())
