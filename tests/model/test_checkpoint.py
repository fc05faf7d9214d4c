"""The containers that training scripts write, and which entry is taken."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rest_deploy.cards import load_card
from rest_deploy.errors import CheckpointError
from rest_deploy.model.checkpoint import load_model, read_checkpoint
from rest_deploy.model.family import build
from rest_deploy.model.rest import ResT

CARD = load_card("nano")


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    weights: dict[str, Tensor] = ResT(CARD.architecture, 6).state_dict()
    return weights


def save(folder: Path, content: object) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def head(path: Path, key: str | None = None) -> Tensor:
    found: Tensor = load_model(CARD, read_checkpoint(path, key)).module.state_dict()["head.weight"]
    return found


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema", "state_dict_ema", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_and_prefixed(tmp_path: Path, key: str, prefix: str) -> None:
    weights = state(1)
    path = save(tmp_path, {key: {prefix + k: v for k, v in weights.items()}, "epoch": 3})
    assert read_checkpoint(path).key == key
    assert torch.equal(head(path), weights["head.weight"])


def test_plain_state_dict(tmp_path: Path) -> None:
    path = save(tmp_path, state(1))
    assert read_checkpoint(path).key == ""
    assert read_checkpoint(path).num_classes == 6


def test_averaged_weights_come_first_and_a_key_overrides(tmp_path: Path) -> None:
    path = save(tmp_path, {"model": state(1), "model_ema": state(2)})
    assert torch.equal(head(path), state(2)["head.weight"])
    assert torch.equal(head(path, "model"), state(1)["head.weight"])


def test_the_official_script_stores_its_arguments(tmp_path: Path) -> None:
    arguments = argparse.Namespace(lr=1e-3, model="rest_lite", resume="")
    path = save(tmp_path, {"model": state(1), "args": arguments, "epoch": 300})
    assert torch.equal(head(path), state(1)["head.weight"])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    path = save(tmp_path, {k: v.half() for k, v in state(1).items()})
    assert head(path).dtype == torch.float32


def test_the_hash_is_of_the_values_not_of_the_file(tmp_path: Path) -> None:
    plain = load_model(CARD, read_checkpoint(save(tmp_path, state(1)))).weights
    wrapped = load_model(CARD, read_checkpoint(save(tmp_path, {"model": state(1)}))).weights
    other = load_model(CARD, read_checkpoint(save(tmp_path, state(2)))).weights
    assert plain.state_sha256 == wrapped.state_sha256 != other.state_sha256
    assert plain.sha256 != wrapped.sha256


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3)])
def test_nothing_to_load(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"holds (no state dict|a \w+, expected)"):
        read_checkpoint(save(tmp_path, content))


# --- what else trains a ResT -------------------------------------------------------------------


def wrapped(prefix: str, seed: int = 1, left: tuple[str, ...] = ()) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state(seed).items()
            if not name.startswith(left)}  # fmt: skip


def ones(*names: str) -> dict[str, Tensor]:
    return {name: torch.ones(4) for name in names}


def test_a_detector_of_detectron2(tmp_path: Path) -> None:
    content = {
        "model": {
            **wrapped("backbone.bottom_up.", left=("head.",)),
            **ones("backbone.fpn_lateral2.weight", "backbone.fpn_output2.weight", "roi_heads.x.w"),
        },
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "iteration": 3,
    }
    found = read_checkpoint(save(tmp_path, content))
    assert found.place == "model.backbone.bottom_up"
    assert found.num_classes == 0
    assert load_model(CARD, found).pooled
    assert found.notes == (
        "weights of model.backbone.bottom_up",
        "left out 1 weight of backbone.fpn_lateral, 1 weight of backbone.fpn_output, 1 weight "
        "of roi_heads",
        "not read: optimizer",
    )


def detector(names: tuple[str, ...], dims: tuple[int, ...]) -> dict[str, Tensor]:
    """Norms of outputs with values that a fresh norm does not have."""
    torch.manual_seed(3)
    found = {}
    for name, dim in zip(names, dims, strict=False):
        found[f"{name}.weight"] = 1 + 0.1 * torch.randn(dim)
        found[f"{name}.bias"] = 0.1 * torch.randn(dim)
    return found


def layer_norm(x: Tensor, norms: dict[str, Tensor], name: str, eps: float) -> Tensor:
    """Over the channels of a map (B, C, H, W), by its definition."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean(1, keepdim=True)
    weight, bias = (norms[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def test_norms_between_the_stages_of_v1(tmp_path: Path) -> None:
    """The official detector feeds the normalized map to the next stage."""
    names = ("norm1", "norm2", "norm3")
    norms = detector(names, CARD.architecture.dims)
    content = {**wrapped("", left=("head.",)), **norms}
    found = read_checkpoint(save(tmp_path, content))
    assert (
        "norms of the stages' outputs, as detectors have them: norm1, norm2, norm3" in found.notes
    )
    module = load_model(CARD, found).module
    assert isinstance(module, ResT)
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        given = module.features(image)
        shown = module.behind_norms(given)
        c2 = layer_norm(module.stage1(module.stem(image)), norms, "norm1", 1e-5)
        c3 = layer_norm(module.stage2(module.patch_embed_2(c2)), norms, "norm2", 1e-5)
        assert torch.allclose(given.c2, c2, atol=1e-5)
        assert torch.allclose(given.c3, c3, atol=1e-5)
        assert torch.equal(shown.c4, given.c4)
        assert torch.equal(shown.tokens, module.norm(given.tokens))
        plain = load_model(CARD, read_checkpoint(save(tmp_path, wrapped("", left=("head.",)))))
        assert not torch.allclose(plain.module.features(image).c4, given.c4, atol=1e-2)
        same = plain.module.features(image)
        assert torch.equal(plain.module.behind_norms(same).tokens, same.tokens)


@pytest.mark.parametrize("written", ["norm_{}", "norm_{}.0"])
def test_norms_of_the_outputs_of_v2(tmp_path: Path, written: str) -> None:
    """detectron2 has them in an nn.Sequential. They change no map but their own; there is no last
    norm."""
    card = load_card("v2-nano")
    names = tuple(f"norm_{stage}" for stage in (1, 2, 3, 4))
    norms = detector(names, card.architecture.dims)
    torch.manual_seed(1)
    weights = build(card.architecture, 0).state_dict()
    content = {f"backbone.{name}": value for name, value in weights.items()
               if not name.startswith("norm.")}  # fmt: skip
    for name, value in norms.items():
        stage, part = name.removeprefix("norm_").split(".")
        content[f"backbone.{written.format(stage)}.{part}"] = value
    content["decode_head.conv_seg.weight"] = torch.ones(3)
    found = read_checkpoint(save(tmp_path, {"state_dict": content}))
    assert "left out 1 weight of decode_head" in found.notes
    loaded = load_model(card, found)
    assert not loaded.pooled
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        given = loaded.module.features(image)
        shown = loaded.module.behind_norms(given)
    plain = {name.removeprefix("backbone."): value for name, value in content.items()
             if "norm_" not in name.split(".")[1]}  # fmt: skip
    del plain["decode_head.conv_seg.weight"]
    bare = load_model(card, read_checkpoint(save(tmp_path, plain))).module
    with torch.inference_mode():
        assert all(map(torch.equal, given, bare.features(image)))
    for index, name in enumerate(names[:3]):
        assert torch.allclose(shown[index], layer_norm(given[index], norms, name, 1e-6), atol=1e-5)
    tokens = layer_norm(given.tokens.transpose(1, 2)[..., None], norms, "norm_4", 1e-6)
    assert torch.allclose(shown.tokens, tokens[..., 0].transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("names", "dims", "words"),
    [
        (("norm_1",), (32,), "unexpected norm_1; its norms of outputs are norm1, norm2, norm3"),
        (("norm4",), (32,), "unexpected norm4"),
        (("norm1",), (64,), r"norm1\.weight is \[64\], expected \[32\]"),
    ],
)
def test_norms_that_do_not_fit(
    tmp_path: Path, names: tuple[str, ...], dims: tuple[int, ...], words: str
) -> None:
    content = {**wrapped("", left=("head.",)), **detector(names, dims)}
    with pytest.raises(CheckpointError, match=words):
        load_model(CARD, read_checkpoint(save(tmp_path, content)))
    half = {name: value for name, value in content.items() if name != f"{names[0]}.bias"}
    with pytest.raises(CheckpointError, match=r"unexpected|norm1"):
        load_model(CARD, read_checkpoint(save(tmp_path, half)))


@pytest.mark.parametrize("key", ["model", "net", "backbone"])
def test_lightning(tmp_path: Path, key: str) -> None:
    content = {
        "state_dict": {**wrapped(f"{key}."), **ones("criterion.weight")},
        "optimizer_states": [{"state": {}}],
        "hyper_parameters": {"lr": 1e-3},
        "callbacks": {"ModelCheckpoint": {"best_model_path": "x"}},
    }
    path = save(tmp_path, content)
    assert torch.equal(head(path), state(1)["head.weight"])
    assert "left out 1 weight of criterion" in read_checkpoint(path).notes


def test_a_module_that_averages(tmp_path: Path) -> None:
    """torch.optim.swa_utils.AveragedModel, as itself and inside a Lightning module."""
    model = ResT(CARD.architecture, 6)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    path = save(tmp_path, average.state_dict())
    found = read_checkpoint(path)
    assert found.notes == ("averaged weights (EMA) of module",)
    assert torch.equal(head(path), model.state_dict()["head.weight"])
    inside = {**wrapped("net."), **{f"ema.{k}": v for k, v in average.state_dict().items()}}
    path = save(tmp_path, {"state_dict": inside})
    assert torch.equal(head(path), model.state_dict()["head.weight"])
    assert torch.equal(head(path, "state_dict.net"), state(1)["head.weight"])
    assert "--checkpoint-key state_dict.net takes the others" in read_checkpoint(path).notes[0]


def test_an_average_that_was_never_updated(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(ResT(CARD.architecture, 6))
    path = save(tmp_path, {"model": state(1), "swa": average.state_dict()})
    assert torch.equal(head(path), state(1)["head.weight"])
    assert any("average of no model yet" in note for note in read_checkpoint(path).notes)


def test_the_key_that_was_chosen_finds_the_same_again(tmp_path: Path) -> None:
    """An export remembers the key alone."""
    contents = [
        {"state_dict": {**wrapped("student.", 1), **wrapped("teacher.net.", 2)}},
        {"a": {"b": {"model": wrapped("module.", 1)}}, "epoch": 2},
        {**wrapped("", 1), **wrapped("module.", 2)},
    ]
    for content, key in zip(contents, ("state_dict.student", None, "."), strict=True):
        path = save(tmp_path, content)
        once = read_checkpoint(path, key)
        again = read_checkpoint(path, once.key or None)
        assert torch.equal(once.state["head.weight"], state(1)["head.weight"])
        assert torch.equal(again.state["head.weight"], state(1)["head.weight"])
        assert once.key == again.key


def test_two_models_are_refused_with_both_names(tmp_path: Path) -> None:
    content = {"state_dict": {**wrapped("student.", 1), **wrapped("teacher.", 2)}}
    path = save(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"2 models.*student, state_dict\.teacher") as error:
        read_checkpoint(path)
    assert error.value.hint is not None
    assert "--checkpoint-key state_dict.student" in error.value.hint
    assert torch.equal(head(path, "state_dict.teacher"), state(2)["head.weight"])


def test_one_model_held_twice(tmp_path: Path) -> None:
    content = {"state_dict": {**wrapped("model.backbone.", 1), **wrapped("ptr.", 1)}}
    assert read_checkpoint(save(tmp_path, content)).place == "state_dict.ptr"


def test_prefixes_that_collide(tmp_path: Path) -> None:
    content = {**wrapped("model."), "model._orig_mod.head.bias": torch.ones(6)}
    with pytest.raises(CheckpointError, match="names a weight twice"):
        read_checkpoint(save(tmp_path, content))
    both = {**wrapped("", 1), **wrapped("module.", 2)}
    with pytest.raises(CheckpointError, match="2 models"):
        read_checkpoint(save(tmp_path, both))


def test_dictionaries_that_are_no_states(tmp_path: Path) -> None:
    content = {"model": {"config": {"depth": 3}, "weights": wrapped("")}, "meta": {"state": 3}}
    assert read_checkpoint(save(tmp_path, content)).key == "model.weights"
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_checkpoint(save(tmp_path, {"model": {"config": {"depth": 3}}}))


def test_a_state_of_something_else(tmp_path: Path) -> None:
    path = save(tmp_path, {"model": ones("conv1.weight"), "ema": ones("fc.weight")})
    with pytest.raises(CheckpointError, match=r"missing stem.*no known variant fits"):
        load_model(CARD, read_checkpoint(path))
    with pytest.raises(CheckpointError, match="no entry 'weights'; it has: model, ema"):
        read_checkpoint(path, "weights")


def test_names_under_the_prefix_must_fit(tmp_path: Path) -> None:
    content = {**wrapped("backbone."), **ones("backbone.extra.weight", "neck.weight")}
    with pytest.raises(CheckpointError, match=r"unexpected extra\.weight") as error:
        load_model(CARD, read_checkpoint(save(tmp_path, content)))
    assert "neck" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "value", "size"),
    [
        ("args", argparse.Namespace(input_size=384), 384),
        ("args", argparse.Namespace(input_size=None, img_size=256), 256),
        ("pretrained_cfg", {"input_size": (3, 288, 288), "crop_pct": 0.9}, 288),
        ("hyper_parameters", {"img_size": [320, 320]}, 320),
        ("args", argparse.Namespace(input_size=True), 0),
        ("args", argparse.Namespace(input_size="384"), 0),
        ("pretrained_cfg", {"input_size": (3, 288, 320)}, 0),
        ("pretrained_cfg", {"input_size": (3, {}, [])}, 0),
        ("config", {"input_size": 384}, 0),
    ],
)  # fmt: skip
def test_the_size_it_was_trained_at(tmp_path: Path, entry: str, value: object, size: int) -> None:
    assert read_checkpoint(save(tmp_path, {"model": state(1), entry: value})).training.size == size
