from __future__ import annotations

import json

import msgspec
import pytest
import torch

from rest_deploy.cards import available, load_card
from rest_deploy.errors import ShapeError
from rest_deploy.model.rest import EfficientAttention, GroupLocal, MapNorm, ResT
from tests.model.weights import GOLDEN, golden_image, official, relative, set_golden

PUBLISHED = ("lite", "small", "base", "large")


OFFICIAL = [
    pytest.param(variant, (64, 64), marks=[] if variant == "lite" else pytest.mark.slow)
    for variant in PUBLISHED
]


@pytest.mark.parametrize(
    ("variant", "size"), [*OFFICIAL, pytest.param("lite", (96, 160), marks=pytest.mark.slow)]
)
def test_it_equals_the_official_outputs(variant: str, size: tuple[int, int]) -> None:
    module = set_golden(ResT(load_card(variant).architecture))
    with torch.inference_mode():
        assert relative(module(golden_image(*size)), official(f"rest_{variant}", *size)) < 1e-9


def test_the_comparison_can_fail() -> None:
    module = set_golden(ResT(load_card("lite").architecture))
    with torch.inference_mode():
        swapped = module(golden_image(64, 64).flip(1))
    assert relative(swapped, official("rest_lite", 64, 64)) > 1e-3


@pytest.mark.parametrize("variant", PUBLISHED)
def test_state_dict_has_the_official_names_and_shapes(variant: str) -> None:
    official = json.loads((GOLDEN / "state_dict_keys.json").read_text())[f"rest_{variant}"]
    with torch.device("meta"):
        module = ResT(load_card(variant).architecture)
    assert {name: list(v.shape) for name, v in module.state_dict().items()} == official


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameter_count_is_the_published_one(variant: str) -> None:
    """Within 0.2 %: the official state dict has 10.51 M values, the paper prints 10.49 M."""
    card = load_card(variant)
    with torch.device("meta"):
        count = sum(p.numel() for p in ResT(card.architecture).parameters())
    assert card.published is not None
    assert count / 1e6 == pytest.approx(card.published.parameters_m, rel=0.002)


def test_nano_is_small() -> None:
    with torch.device("meta"):
        module = ResT(available()["nano"].architecture)
    assert sum(p.numel() for p in module.parameters()) <= 1_500_000


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 131), (200, 225), (32, 320)])
def test_any_size_from_32_works_and_is_batch_invariant(size: tuple[int, int]) -> None:
    module = set_golden(ResT(load_card("nano").architecture, 7))
    image = golden_image(*size)
    with torch.inference_mode():
        together = module(image)
        alone = torch.cat([module(image[:1]), module(image[1:])])
    assert together.shape == (2, 7)
    assert torch.isfinite(together).all()
    assert relative(together, alone) < 1e-12


@pytest.mark.parametrize("shape", [(1, 3, 31, 31), (1, 3, 32, 31), (1, 1, 64, 64), (3, 64, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    module = ResT(load_card("nano").architecture, 7)
    with pytest.raises(ShapeError, match="at least 32"):
        module(torch.zeros(shape))


def test_weights_are_initialized_as_published() -> None:
    torch.manual_seed(0)
    module = ResT(load_card("nano").architecture, 7)
    state = module.state_dict()
    assert float(state["stage4.0.mlp.fc1.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(state["patch_embed_4.conv.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert not state["stage4.0.mlp.fc1.bias"].any()
    assert bool((module.norm.weight == 1).all())


def test_no_head_returns_the_embedding() -> None:
    module = ResT(load_card("nano").architecture, 0).eval()
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 128)
    assert not any(name.startswith("head") for name in module.state_dict())


@pytest.mark.parametrize("encoding", ["pa", "gl", "none"])
@pytest.mark.parametrize(("mix", "norm"), [(True, True), (True, False), (False, False)])
def test_ablations_are_card_fields(encoding: str, mix: bool, norm: bool) -> None:
    base = load_card("nano").architecture
    changes = {"position_encoding": encoding, "head_mix": mix, "attention_norm": norm}
    architecture = msgspec.structs.replace(base, **changes)
    module = set_golden(ResT(architecture, 7))
    attention = module.stage2[0].attn
    assert isinstance(attention, EfficientAttention)
    assert (attention.transform_conv is not None) is mix
    assert (attention.transform_norm is not None) is norm
    names = " ".join(module.state_dict())
    assert ("pa_conv" in names) is (encoding == "pa")
    assert ("gl_conv" in names) is (encoding == "gl")
    with torch.inference_mode():
        assert torch.isfinite(module(golden_image(64, 96))).all()


def test_group_local_adds() -> None:
    module = GroupLocal(4)
    x = torch.randn(1, 4, 5, 5)
    assert torch.allclose(module(x) - x, module.gl_conv(x))


def test_map_norm_is_instance_norm_where_that_runs() -> None:
    p = torch.rand(2, 3, 6, 5, dtype=torch.float64).softmax(-1)
    expected = torch.nn.functional.instance_norm(p)
    assert relative(MapNorm()(p), expected) < 1e-12
    assert not MapNorm()(torch.ones(2, 3, 1, 1)).any()  # one key: its limit


def test_one_head_has_neither_mix_nor_norm() -> None:
    attention = EfficientAttention(8, 1, 2, qkv_bias=True, mix=True, norm=True)
    assert attention.transform_conv is None
    assert attention.transform_norm is None
