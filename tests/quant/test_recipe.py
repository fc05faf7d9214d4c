from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.errors import CardError
from rest_deploy.graph.roles import ROLES, Place, block, place
from rest_deploy.quant.recipe import Recipe, load_recipe


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stem.conv2.Conv", Place("stem.conv2", "stem")),
        ("stem.pos.pa_conv.Conv", Place("stem", "pa")),
        ("patch_embed_3.conv.Conv", Place("patch_embed_3", "patch")),
        ("patch_embed_3.pos.pa_conv.Conv", Place("patch_embed_3", "pa")),
        ("stage3.4.attn.q.MatMul", Place("stage3.4", "qkv")),
        ("stage3.4.attn.scores.MatMul", Place("stage3.4", "scores")),
        ("stage3.4.attn.transform_conv.Conv", Place("stage3.4", "transform")),
        ("stage3.4.attn.norm.Mul_1", Place("stage3.4", "norm")),
        ("stage3.4.attn.context.MatMul", Place("stage3.4", "context")),
        ("stage3.4.attn.proj.MatMul", Place("stage3.4", "proj")),
        ("stage1.0.attn.sr.Conv", Place("stage1.0", "sr")),
        ("stage3.14.mlp.fc2.MatMul", Place("stage3.14", "mlp")),
        ("head.Gemm", Place("head", "head")),
        ("stage3.4.Add_1", None),
        ("stage3.4.attn.q.Add", None),
        ("stage3.4.norm1.LayerNormalization", None),
    ],
)
def test_places(name: str, expected: Place | None) -> None:
    assert place(name) == expected


def test_blocks() -> None:
    assert block("stage3.14.Add") == "stage3.14"
    assert block("patch_embed_2.pos.Mul") == "patch_embed_2"


def test_shipped_recipes_are_valid() -> None:
    int8, fp8 = load_recipe("int8"), load_recipe("fp8")
    assert (int8.format, fp8.format) == ("int8", "fp8")
    floating = set(ROLES) - set(int8.quantize)
    assert floating == {"offset", "pa", "scores", "transform", "norm", "context", "sr", "up"}
    assert set(int8.quantize) == {"stem", *load_recipe("int8-float-stem").quantize}
    openvino = load_recipe("int8-openvino")
    assert set(openvino.quantize) == {"scores", "context", *int8.quantize}
    wanted = [n for n in range(1, 5) if openvino.wants(Place(f"stage{n}.0", "context"))]
    assert wanted == [1], "the only stage without an InstanceNorm"
    assert not {"pa", "sr"} & set(fp8.quantize)  # no depthwise convolution


def recipe(tmp_path: Path, **changes: str) -> Recipe:
    lines = {"schema": "1", "name": '"mine"', "format": '"int8"', "quantize": '["qkv", "proj"]'}
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(f"{k} = {v}" for k, v in {**lines, **changes}.items()))
    return load_recipe(str(path))


def test_exceptions_name_a_block_or_a_stage(tmp_path: Path) -> None:
    mine = recipe(tmp_path, float_places='["stage2.0:proj", "stage4:qkv"]')
    assert not mine.wants(Place("stage2.0", "proj"))
    assert mine.wants(Place("stage2.1", "proj"))
    assert mine.wants(Place("stage2.0", "qkv"))
    assert not mine.wants(Place("stage4.1", "qkv"))
    assert mine.wants(Place("stage3.0", "qkv"))
    assert not mine.wants(Place("stage3.0", "mlp"))  # not in `quantize`


def test_thresholds_of_single_places(tmp_path: Path) -> None:
    places = (
        '{algorithm = "minmax", places = {"stem.conv2:stem" = "mse", "stage3:mlp" = "entropy"}}'
    )
    chosen = recipe(tmp_path, activations=places).activations
    assert chosen.of(Place("stem.conv2", "stem")) == "mse"
    assert chosen.of(Place("stem.conv3", "stem")) == "minmax"
    assert chosen.of(Place("stage3.1", "mlp")) == "entropy"
    assert chosen.of(None) == "minmax"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantize": '["qkvs"]'}, "unknown role 'qkvs'.*did you mean 'qkv'"),
        ({"float_places": '["stage2:prj"]'}, "unknown role 'prj'.*did you mean 'proj'"),
        ({"activations": '{places = {"stem:stm" = "mse"}}'}, "did you mean 'stem'"),
        ({"format": '"int4"'}, "format"),
        ({"colour": '"red"'}, "colour"),
        ({"corrections": "{equalization = 2.0}"}, "equalization must be within 0 and 1"),
        ({"quantize": '["qkv"'}, "not valid"),
    ],
)
def test_malformed_recipes_say_where(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(CardError, match=words):
        recipe(tmp_path, **changes)


def test_unknown_recipe_lists_the_packaged_ones() -> None:
    with pytest.raises(CardError, match=r"no such recipe: int7; packaged ones: fp8, int8"):
        load_recipe("int7")
