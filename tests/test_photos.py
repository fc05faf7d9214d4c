"""rest_deploy.photos: the split holds no pixel twice; the shipped checkpoint and its script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from rest_deploy import photos
from rest_deploy.cards import load_card
from rest_deploy.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
ASSET = ROOT / "tests" / "assets" / "rest_nano_photos.safetensors"
MANY = 4400  # 200 crops of each photo

SEALED = [
    photos.Crop(photo=0, left=262, top=258, right=512, bottom=469),
    photos.Crop(photo=1, left=272, top=256, right=506, bottom=512),
    photos.Crop(photo=2, left=221, top=374, right=319, bottom=496),
]

needs_photos = pytest.mark.skipif(not photos.available(), reason="needs scikit-image's photos")


def _overlap(a: photos.Box, b: photos.Box) -> bool:
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def test_labels_are_many_distinct_and_sorted() -> None:
    assert len(photos.LABELS) >= 20
    assert list(photos.LABELS) == sorted(set(photos.LABELS))


@needs_photos
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_test_crops_lie_inside_the_held_out_part_and_train_crops_outside(seed: int) -> None:
    for crop in photos.crops("test", MANY, seed):
        held = photos.held_out(crop.photo)
        assert held[0] <= crop.left < crop.right <= held[2], crop
        assert held[1] <= crop.top < crop.bottom <= held[3], crop
    for crop in photos.crops("train", MANY, seed):
        assert not _overlap(crop.box, photos.held_out(crop.photo)), crop


@needs_photos
def test_every_photo_has_a_held_out_part() -> None:
    for index in range(len(photos.LABELS)):
        left, top, right, bottom = photos.held_out(index)
        whole = photos.load(photos.Crop(index, left, top, right, bottom)).size
        assert whole == (right - left, bottom - top)
        assert (right - left) * (bottom - top) > 0


@needs_photos
def test_crops_are_deterministic_prefixes_and_differ_by_seed_and_split() -> None:
    first = photos.crops("train", 100, 7)
    assert first == photos.crops("train", 100, 7)
    assert first[:30] == photos.crops("train", 30, 7)
    assert first != photos.crops("train", 100, 8)
    assert not set(first) & set(photos.crops("test", 100, 7))


@needs_photos
def test_a_known_crop_stays_where_it_is() -> None:
    """Sealed: recorded results are only comparable while the crops are the same."""
    assert photos.crops("test", 3, 0) == SEALED


@needs_photos
@pytest.mark.parametrize("count", [22, 44, 512])
def test_classes_are_balanced(count: int) -> None:
    of_class = [0] * len(photos.LABELS)
    for crop in photos.crops("train", count, 3):
        of_class[crop.photo] += 1
    assert max(of_class) - min(of_class) <= 1
    assert sum(of_class) == count


@needs_photos
def test_load_gives_the_exact_pixels_as_rgb() -> None:
    for crop in photos.crops("test", len(photos.LABELS), 0):
        image = photos.load(crop)
        assert image.mode == "RGB"
        assert image.size == (crop.right - crop.left, crop.bottom - crop.top)


@needs_photos
@pytest.mark.parametrize(
    "crop",
    [
        photos.Crop(len(photos.LABELS), 0, 0, 8, 8),
        photos.Crop(-1, 0, 0, 8, 8),
        photos.Crop(0, 8, 0, 8, 8),
        photos.Crop(0, -1, 0, 8, 8),
        photos.Crop(0, 0, 0, 8, 100_000),
    ],
)
def test_load_refuses_boxes_outside_the_photo(crop: photos.Crop) -> None:
    with pytest.raises(InputError):
        photos.load(crop)


def test_crops_refuse_negative_arguments() -> None:
    with pytest.raises(InputError):
        photos.crops("train", -1, 0)
    with pytest.raises(InputError):
        photos.crops("train", 1, -1)


def test_the_shipped_checkpoint_is_small_labelled_and_accurate() -> None:
    assert ASSET.stat().st_size <= 3_000_000
    with safe_open(ASSET, framework="numpy") as file:
        metadata = file.metadata()
    training = json.loads(metadata["rest_deploy.training"])
    assert metadata["rest_deploy.variant"] == "nano"
    assert tuple(json.loads(metadata["rest_deploy.labels"])) == photos.LABELS
    assert training["held_out_crops"] == 512
    assert training["held_out_top1"] >= 0.90
    # What regenerates it is the default recipe: no tuning option may hide in the command.
    assert training["command"] == (
        "python scripts/train_photos.py --variant nano "
        "--output tests/assets/rest_nano_photos.safetensors"
    )


@needs_photos
def test_the_training_script_runs_and_writes_a_loadable_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from rest_deploy.model.rest import ResT

    output = tmp_path / "nano.safetensors"
    arguments = ["--variant", "nano", "--steps", "2", "--test-crops", "4", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train_photos.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "held-out top-1" in done.stdout
    model = ResT(load_card("nano").architecture, len(photos.LABELS))
    model.load_state_dict(load_file(output))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
