"""Where a checkpoint keeps a ResT, by names alone: v1's and v2's."""

from __future__ import annotations

import pytest

from rest_deploy.model import naming

V1 = (
    "stem.conv1.weight", "stem.norm1.num_batches_tracked", "patch_embed_2.conv.weight",
    *(f"stage{stage}.0.{part}.weight" for stage in (1, 2, 3, 4) for part in ("norm1", "attn.q")),
    "norm.weight", "head.weight", "head.bias",
)  # fmt: skip
V2 = (
    "stem.proj.0.weight", "stem.norm.weight", "patch_2.proj.weight",
    *(f"stage{stage}.1.{part}.weight" for stage in (2, 3, 4) for part in ("norm1", "attn.up.0")),
    *(f"stage{stage}.0.{part}.weight" for stage in (1, 2, 3, 4) for part in ("norm1", "attn.kv")),
    "norm.weight", "head.weight", "head.bias",
)  # fmt: skip


def under(prefix: str, names: tuple[str, ...] = V1) -> list[str]:
    return [prefix + name for name in names]


@pytest.mark.parametrize("names", [V1, V2])
@pytest.mark.parametrize(
    "prefix",
    [
        "", "module.", "model.", "net.", "backbone.", "backbone.bottom_up.", "_orig_mod.",
        "module._orig_mod.model.", "model.model.backbone.module.", "timm_model.",
        "_fsdp_wrapped_module._orig_mod.",
    ],
)  # fmt: skip
def test_any_prefix(prefix: str, names: tuple[str, ...]) -> None:
    (found,) = naming.find({"state_dict": under(prefix, names)})
    assert found.prefix == prefix
    assert dict(found.names) == {name: prefix + name for name in names}
    assert found.place == ".".join(filter(None, ("state_dict", prefix[:-1])))
    assert not found.others


def test_wrappers_inside_names() -> None:
    names = [
        name.replace("stage2.0.", "stage2.0._checkpoint_wrapped_module._orig_mod.") for name in V1
    ]
    (found,) = naming.find({"": under("model.", tuple(names))})
    assert set(found.names) == set(V1)


def test_what_is_no_rest() -> None:
    resnet = ["conv1.weight", "layer1.0.conv1.weight", "fc.weight", "stem.0.weight"]
    assert naming.find({"": resnet, "model": ["stage1.0.attn.qkv.weight"]}) == []


def test_other_parts_are_told_by_their_names() -> None:
    others = [
        "decode_head.conv_seg.weight", "decode_head.conv_seg.bias", "auxiliary_head.convs.0.weight",
        "decode_head.bn.num_batches_tracked",
    ]  # fmt: skip
    (found,) = naming.find({"state_dict": [*under("backbone."), *others]})
    assert naming.groups(found) == ["2 weights of decode_head", "1 weight of auxiliary_head"]
    detector = [
        *under("backbone.bottom_up."),
        *(f"backbone.fpn_lateral{index}.weight" for index in (2, 3, 4, 5)),
        "roi_heads.box_predictor.cls_score.weight",
    ]
    (found,) = naming.find({"model": detector})
    assert naming.groups(found) == ["4 weights of backbone.fpn_lateral", "1 weight of roi_heads"]


@pytest.mark.parametrize(
    ("written", "official"),
    [
        (("norm1.weight", "norm2.bias"), {"norm1.weight", "norm2.bias"}),
        (("norm_1.weight", "norm_4.bias"), {"norm_1.weight", "norm_4.bias"}),
        (("norm_1.0.weight", "norm_4.0.bias"), {"norm_1.weight", "norm_4.bias"}),
    ],
)
def test_output_norms_are_kept_apart(written: tuple[str, ...], official: set[str]) -> None:
    (found,) = naming.find({"": under("backbone.", (*V1, *written))})
    assert set(found.output_norms) == official
    assert set(found.names) == set(V1)


def only(found: list[naming.Found]) -> naming.Found:
    (one,) = naming.best(found)
    return one


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ({"model": under(""), "model_ema": under("")}, "model_ema"),
        ({"state_dict": under("module."), "state_dict_ema": under("module.")},
         "state_dict_ema.module"),
        ({"model": under(""), "ema": under("module.")}, "ema.module"),
        ({"": [*under("module."), "n_averaged"]}, "module"),
        ({"model": under(""), "swa_model": [*under("module."), "n_averaged"]}, "swa_model.module"),
        ({"model": under(""), "other": [*under("module."), "n_averaged"]}, "other.module"),
        ({"state_dict": [*under("net."), *under("ema_net.module."), "ema_net.n_averaged"]},
         "state_dict.ema_net.module"),
        ({"state_dict": under("net."), "callbacks.EMA.ema_state_dict": under("net.")},
         "callbacks.EMA.ema_state_dict.net"),
        ({"current_model_state": under("net."), "state_dict": under("net."),
          "averaging_state": ["n_averaged"]}, "state_dict.net"),
    ],
)  # fmt: skip
def test_averaged_weights_come_first(entries: dict[str, list[str]], place: str) -> None:
    found = only(naming.find(entries))
    assert found.place == place
    assert found.averaged


@pytest.mark.parametrize("prefix", ["", "gamma.", "schema.", "remapped_", "emanation."])
def test_names_that_only_sound_averaged(prefix: str) -> None:
    (found,) = naming.find({"state_dict": under(f"{prefix}net.")})
    assert not found.averaged


def test_the_known_entries_come_before_others() -> None:
    assert only(naming.find({"best": under(""), "state_dict": under("")})).place == "state_dict"
    assert only(naming.find({"state_dict": under(""), "model": under("")})).place == "model"


def test_an_average_of_nothing_comes_last() -> None:
    found = naming.find({"model": under(""), "ema": [*under("module."), "n_averaged"]})
    (one,) = naming.best(found, unused=["ema.module"])
    assert one.place == "model"
    assert [one.counter for one in found] == [None, ("ema", "n_averaged")]


def test_two_models() -> None:
    found = naming.find({"state_dict": [*under("student."), *under("teacher.backbone.")]})
    assert [one.place for one in naming.best(found)] == [
        "state_dict.student", "state_dict.teacher.backbone",
    ]  # fmt: skip
    assert all(set(one.names) == set(V1) for one in found)
    assert [one.place for one in naming.named(found, "state_dict.teacher")] == [
        "state_dict.teacher.backbone"
    ]
    assert naming.named(found, "state_dict.teach") == []
    assert len(naming.named(found, "state_dict")) == 2


def test_one_model_inside_the_names_of_another() -> None:
    """The names of the inner one are not the outer one's."""
    found = naming.find({"": [*under(""), *under("module.")]})
    assert [(one.place, set(one.names) == set(V1)) for one in found] == [
        (".", True), ("module", True),
    ]  # fmt: skip
    (top,) = naming.named(found, ".")
    assert top.prefix == ""


def test_names_that_collide() -> None:
    names = under("net.", (*V1, "stage1.0._orig_mod.attn.q.weight"))
    with pytest.raises(naming.CollisionError, match=r"both stage1\.0\.attn\.q\.weight"):
        naming.find({"": names})
