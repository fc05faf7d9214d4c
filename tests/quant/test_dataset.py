from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rest_deploy import photos
from rest_deploy.cards import load_card
from rest_deploy.errors import ImageError, InputError
from rest_deploy.quant.dataset import open_set

PREPROCESSING = load_card("nano").preprocessing


def photo_like(folder: Path, count: int, seed: int = 0, size: int = 96) -> list[Path]:
    """Smooth random images: neighbouring pixels are related, as in photos."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    files = []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        file = folder / f"{index:03d}.png"
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(file)
        files.append(file)
    return files


def test_a_folder_with_classes(tmp_path: Path) -> None:
    photo_like(tmp_path / "cat", 3)
    photo_like(tmp_path / "dog", 2, seed=1)
    found = open_set(tmp_path, PREPROCESSING)
    assert found.manifest.ids[0] == "cat/000.png"
    assert (found.health.images, found.health.classes, found.health.duplicates) == (5, 2, 0)
    assert any("NVIDIA recommends 500" in warning for warning in found.health.warnings)
    sizes = [batch.shape for batch in found.batches(2)]
    assert sizes == [(2, 3, 224, 224), (2, 3, 224, 224), (1, 3, 224, 224)]


def test_several_sizes_in_turn(tmp_path: Path) -> None:
    """Blocks of images share a size, so that they share batches; each image keeps its own."""
    photo_like(tmp_path, 20)
    found = open_set(tmp_path, PREPROCESSING, sizes=((64, 96), (224, 224)))
    assert found.manifest.sizes == ((64, 96), (224, 224))
    shapes = [batch.shape for batch in found.batches(8)]
    assert shapes == [(8, 3, 64, 96), (8, 3, 224, 224), (4, 3, 64, 96)]
    assert [found.tensor(index).shape[1:] for index in (7, 8)] == [(64, 96), (224, 224)]
    resumed = [batch.shape for batch in found.batches(8, start=8)]
    assert resumed == shapes[1:]
    assert found.manifest.sha256 != open_set(tmp_path, PREPROCESSING).manifest.sha256


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    photo_like(tmp_path, 2)
    with pytest.raises(InputError, match="calibration size 16x224"):
        open_set(tmp_path, PREPROCESSING, sizes=((16, 224),))
    np.save(tmp_path / "set.npy", np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="holds images of one size"):
        open_set(tmp_path / "set.npy", PREPROCESSING, sizes=((64, 64),))


def test_the_spread_of_sizes(tmp_path: Path) -> None:
    photo_like(tmp_path / "small", 2, size=64)
    photo_like(tmp_path / "large", 2, size=200)
    health = open_set(tmp_path, PREPROCESSING).health
    assert (health.smallest, health.largest) == ((64, 64), (200, 200))


def test_a_list(tmp_path: Path) -> None:
    photo_like(tmp_path / "images", 3)
    listing = tmp_path / "list.txt"
    listing.write_text("images/002.png\nimages/000.png\n\n")
    found = open_set(listing, PREPROCESSING)
    assert found.manifest.ids == ("images/002.png", "images/000.png")


def test_one_class_is_said(tmp_path: Path) -> None:
    photo_like(tmp_path / "cat", 3)
    assert any("one class" in w for w in open_set(tmp_path, PREPROCESSING).health.warnings)


def test_duplicates_are_counted(tmp_path: Path) -> None:
    files = photo_like(tmp_path, 4)
    files[3].write_bytes(files[0].read_bytes())
    found = open_set(tmp_path, PREPROCESSING).health
    assert found.duplicates == 1
    assert any("duplicates" in warning for warning in found.warnings)


def test_a_few_unreadable_files_are_skipped_and_listed(tmp_path: Path) -> None:
    photo_like(tmp_path, 30)
    (tmp_path / "zzz.jpg").write_text("not an image")
    found = open_set(tmp_path, PREPROCESSING)
    assert len(found) == 30
    assert len(found.health.unreadable) == 1
    assert "zzz.jpg" in found.health.unreadable[0]


def test_many_unreadable_files_stop_it(tmp_path: Path) -> None:
    photo_like(tmp_path, 10)
    (tmp_path / "zzz.jpg").write_text("not an image")
    with pytest.raises(InputError, match=r"1 of 11 calibration images .* cannot be read"):
        open_set(tmp_path, PREPROCESSING)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no images below"):
        open_set(tmp_path, PREPROCESSING)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="the list is empty"):
        open_set(tmp_path / "empty.txt", PREPROCESSING)


def test_noise_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    with pytest.raises(InputError, match=r"4 of 4 calibration images .* are random noise"):
        open_set(tmp_path, PREPROCESSING)


def test_arrays(tmp_path: Path) -> None:
    files = photo_like(tmp_path / "images", 4, size=64)
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    np.save(tmp_path / "pixels.npy", pixels)
    found = open_set(tmp_path / "pixels.npy", PREPROCESSING)
    tensors = np.concatenate(list(found.batches(3)))
    assert tensors.shape == (4, 3, 64, 64)
    np.savez(tmp_path / "tensors.npz", images=tensors)
    again = open_set(tmp_path / "tensors.npz", PREPROCESSING)
    np.testing.assert_array_equal(np.concatenate(list(again.batches(2))), tensors)
    assert again.health.brightness_mean == pytest.approx(found.health.brightness_mean, abs=0.01)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 3, 64, 64), 200.0, np.float32), "values up to 200; expected normalized"),
        (np.full((2, 3, 64, 64), np.nan, np.float32), "NaN or infinite"),
        (np.zeros((2, 64, 64, 3), np.float32), r"expected float32 \(N, 3, H, W\)"),
        (np.zeros((0, 3, 64, 64), np.float32), "expected float32"),
        (np.zeros((64, 64, 3), np.uint8), r"uint8 \(N, H, W, 3\)"),
    ],
)
def test_wrong_arrays(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "wrong.npy", array)
    with pytest.raises(InputError, match=words):
        open_set(tmp_path / "wrong.npy", PREPROCESSING)


def test_damaged_array_file(tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match="not a NumPy array file"):
        open_set(tmp_path / "damaged.npz", PREPROCESSING)


@pytest.mark.skipif(not photos.available(), reason="needs scikit-image's photos")
def test_the_default_is_scikit_images_photos() -> None:
    found = open_set(None, PREPROCESSING, limit=44)
    assert found.manifest.kind == "photos"
    assert found.health.classes == len(photos.LABELS)
    assert found.health.noise <= 2


def test_a_limit_draws_with_the_seed(tmp_path: Path) -> None:
    photo_like(tmp_path, 20)
    first = open_set(tmp_path, PREPROCESSING, limit=5, seed=1).manifest
    assert len(first.ids) == 5
    assert open_set(tmp_path, PREPROCESSING, limit=5, seed=1).manifest == first
    assert open_set(tmp_path, PREPROCESSING, limit=5, seed=2).manifest.ids != first.ids
