"""What an engine is calibrated on: a folder, arrays, a list, or scikit-image's photos.

A set is streamed: images are decoded when their batch is due. Before that, every image is looked
at once, because calibration on the wrong images fails silently: the engine builds, runs, and is
wrong on real photos.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from rest_deploy import photos
from rest_deploy.contracts import SMALLEST_SIDE, Preprocessing, Struct
from rest_deploy.errors import ImageError, InputError
from rest_deploy.preprocess import list_images, load_image, normalize, to_pixels

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Item = TypeVar("Item")
Kind = Literal["folder", "list", "array", "photos"]

RECOMMENDED = 500
"""NVIDIA's recommendation for vision transformers (ModelOpt, examples/onnx_ptq)."""

FEWEST = 128
"""Fewer than these: a warning."""

UNREADABLE_SHARE = 0.05
"""More unreadable files than this: the folder is not what it should be."""

NOISE_CORRELATION = 0.3
"""Correlation of neighbouring pixels; photos are above 0.8, white noise is at 0."""

NORMALIZED_RANGE = 20.0
"""No normalized image has a value beyond this; 0..255 has."""

DEFAULT_PHOTO_CROPS = 256

SIZE_BLOCK = 8
"""So many images in a row have one size: they share a batch."""

Size = tuple[int, int]
"""Height and width in pixels."""


class Health(Struct, frozen=True):
    """What was found before calibrating. Brightness: mean of the pixels, 0 to 1, per image;
    `smallest` and `largest`: (width, height) of the images as they came, by area."""

    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    unreadable: tuple[str, ...]
    duplicates: int
    noise: int
    classes: int
    brightness_min: float
    brightness_mean: float
    brightness_max: float
    preprocessing: Preprocessing
    warnings: tuple[str, ...]


class Manifest(Struct, frozen=True):
    """Which images: enough to make the same set again and to tell another one apart.

    `sizes`: (height, width) that they are brought to in turn, empty for the card's own.
    """

    kind: Kind
    source: str
    seed: int
    ids: tuple[str, ...]
    sha256: str
    preprocessing: Preprocessing
    sizes: tuple[Size, ...] = ()


@dataclass(frozen=True)
class CalibrationSet:
    """`tensor(i)` is image i of the manifest, normalized, (3, H, W) float32."""

    manifest: Manifest
    health: Health
    tensor: Callable[[int], Float32]

    def __len__(self) -> int:
        return len(self.manifest.ids)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Float32]:
        """Images start to stop as (N, 3, H, W) float32 with N <= size, in the manifest's order.

        Images of unlike sizes do not share a batch.
        """
        batch: list[Float32] = []
        for index in range(start, len(self) if stop is None else min(stop, len(self))):
            image = self.tensor(index)
            if batch and (len(batch) == size or image.shape != batch[0].shape):
                yield np.stack(batch)
                batch = []
            batch.append(image)
        if batch:
            yield np.stack(batch)


def open_set(
    source: Path | None,
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    seed: int = 0,
    sizes: tuple[Size, ...] = (),
) -> CalibrationSet:
    """Open and examine a calibration set.

    source: a folder (recursive), a text file with one image path a line, a .npy/.npz array, or
    None for crops of scikit-image's photos. limit: at most so many images, drawn with `seed`.
    sizes: what images are brought to, `SIZE_BLOCK` images to each in turn; none: the card's.
    Raises `InputError` or `ImageError` when there is nothing to calibrate on.
    """
    for height, width in sizes:
        if min(height, width) < SMALLEST_SIDE:
            raise InputError(
                f"calibration size {height}x{width}; expected at least {SMALLEST_SIDE} pixels"
            )
    if source is None:
        return _photo_set(preprocessing, limit or DEFAULT_PHOTO_CROPS, seed, sizes)
    if source.suffix in {".npy", ".npz"}:
        if sizes:
            raise InputError(f"{source} holds images of one size; calibration sizes need files")
        return _array_set(source, preprocessing, limit, seed)
    if source.is_file():
        lines = source.read_text(encoding="utf-8-sig").splitlines()
        files = [source.parent / line.strip() for line in lines if line.strip()]
        kind: Kind = "list"
    else:
        files, kind = list_images(source), "folder"
    files = _drawn(files, limit, seed)
    return _file_set(kind, source, files, preprocessing, seed, sizes)


def _size(index: int, sizes: tuple[Size, ...]) -> Size | None:
    """Of image `index`, None for the card's."""
    return sizes[index // SIZE_BLOCK % len(sizes)] if sizes else None


def _file_set(
    kind: Kind,
    source: Path,
    files: list[Path],
    preprocessing: Preprocessing,
    seed: int,
    sizes: tuple[Size, ...],
) -> CalibrationSet:
    readable: list[Path] = []
    unreadable: list[str] = []
    seen = _Examination()
    for file in files:
        try:
            image = load_image(file)
            pixels = to_pixels(image, preprocessing, _size(len(readable), sizes))
        except ImageError as error:
            unreadable.append(error.message)
            continue
        readable.append(file)
        seen.add(pixels, image.size)
    if not readable or len(unreadable) > UNREADABLE_SHARE * len(files):
        first = unreadable[0] if unreadable else "the list is empty"
        raise InputError(
            f"{len(unreadable)} of {len(files)} calibration images in {source} cannot be read, "
            f"expected at most {UNREADABLE_SHARE:.0%}; the first: {first}"
        )
    base = source if source.is_dir() else source.parent
    ids = [str(file.relative_to(base)) if file.is_relative_to(base) else str(file)
           for file in readable]  # fmt: skip
    classes = len({file.parent for file in readable})
    nested = kind == "folder" and any(file.parent != source for file in readable)
    health = seen.report(str(source), unreadable, classes if nested else 0, preprocessing)

    def tensor(index: int) -> Float32:
        image = load_image(readable[index])
        return normalize(to_pixels(image, preprocessing, _size(index, sizes)), preprocessing)

    manifest = _manifest(kind, str(source), seed, ids, seen.digest(), preprocessing, sizes)
    return CalibrationSet(manifest, health, tensor)


def _photo_set(
    preprocessing: Preprocessing, count: int, seed: int, sizes: tuple[Size, ...]
) -> CalibrationSet:
    crops = photos.crops("train", count, seed)
    seen = _Examination()
    for index, crop in enumerate(crops):
        image = photos.load(crop)
        seen.add(to_pixels(image, preprocessing, _size(index, sizes)), image.size)
    ids = [f"{photos.LABELS[crop.photo]}/{','.join(map(str, crop.box))}" for crop in crops]
    health = seen.report("scikit-image's photos", [], len(photos.LABELS), preprocessing)

    def tensor(index: int) -> Float32:
        image = photos.load(crops[index])
        return normalize(to_pixels(image, preprocessing, _size(index, sizes)), preprocessing)

    manifest = _manifest(
        "photos", "scikit-image's photos", seed, ids, seen.digest(), preprocessing, sizes
    )
    return CalibrationSet(manifest, health, tensor)


def _array_set(
    source: Path, preprocessing: Preprocessing, limit: int | None, seed: int
) -> CalibrationSet:
    images = _read_array(source)
    order = _drawn(list(range(len(images))), limit, seed)
    seen = _Examination()
    mean = np.asarray(preprocessing.mean, np.float32)[:, None, None]
    std = np.asarray(preprocessing.std, np.float32)[:, None, None]
    for index in order:
        image = images[index]
        if image.dtype == np.uint8:
            seen.add(image, (image.shape[1], image.shape[0]))
            continue
        _check_normalized(image, source)
        shown = np.clip((image * std + mean) * 255, 0, 255).round().astype(np.uint8)
        seen.add(shown.transpose(1, 2, 0), (image.shape[2], image.shape[1]))
    health = seen.report(str(source), [], 0, preprocessing)

    def tensor(index: int) -> Float32:
        image = images[order[index]]
        if image.dtype == np.uint8:
            return normalize(image, preprocessing)
        converted: Float32 = image.astype(np.float32, copy=False)
        return converted

    ids = [str(index) for index in order]
    return CalibrationSet(
        _manifest("array", str(source), seed, ids, seen.digest(), preprocessing), health, tensor
    )


def _read_array(source: Path) -> npt.NDArray[np.generic]:
    """(N, 3, H, W) float32 or (N, H, W, 3) uint8, memory-mapped where the format allows."""
    try:
        stored = np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{source} is not a NumPy array file: {error}") from error
    array: npt.NDArray[np.generic]
    if isinstance(stored, np.lib.npyio.NpzFile):
        if len(stored.files) != 1:
            raise InputError(f"{source} holds {', '.join(stored.files)}; expected one array")
        array = stored[stored.files[0]]
    else:
        array = stored
    floats = array.dtype == np.float32 and array.ndim == 4 and array.shape[1] == 3
    pixels = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
    if not (floats or pixels) or not len(array):
        raise InputError(
            f"{source} holds {array.dtype} {array.shape}; expected float32 (N, 3, H, W), "
            "normalized, or uint8 (N, H, W, 3)"
        )
    return array


def _check_normalized(image: npt.NDArray[np.generic], source: Path) -> None:
    largest = float(np.abs(image).max())
    if not np.isfinite(largest):
        raise InputError(f"{source} has NaN or infinite values")
    if largest > NORMALIZED_RANGE:
        raise InputError(
            f"{source} has values up to {largest:.0f}; expected normalized images (about -3 to 3)",
            hint="pixels 0..255 belong in a uint8 array (N, H, W, 3): it is normalized here",
        )


class _Examination:
    """Collects what the health report says, one image at a time."""

    def __init__(self) -> None:
        self._hashes: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._brightness: list[float] = []
        self._noise = 0

    def add(self, pixels: UInt8, size: tuple[int, int]) -> None:
        """pixels: (H, W, 3) uint8; size: (width, height) of the image they were cut from."""
        self._sizes.append(size)
        self._hashes.append(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest())
        grey = pixels.mean(axis=2)
        self._brightness.append(float(grey.mean()) / 255)
        self._noise += _neighbour_correlation(grey) < NOISE_CORRELATION

    def digest(self) -> str:
        return hashlib.sha256("".join(self._hashes).encode()).hexdigest()

    def report(
        self, source: str, unreadable: list[str], classes: int, preprocessing: Preprocessing
    ) -> Health:
        """Raises `InputError` when most images are noise."""
        count = len(self._hashes)
        if self._noise > count / 2:
            raise InputError(
                f"{self._noise} of {count} calibration images in {source} are random noise: "
                "neighbouring pixels are unrelated",
                hint="calibrate on images like those the engine will see",
            )
        duplicates = count - len(Counter(self._hashes))
        warnings = []
        if count < FEWEST:
            warnings.append(f"{count} calibration images; NVIDIA recommends {RECOMMENDED}")
        if duplicates > count / 10:
            warnings.append(f"{duplicates} of {count} calibration images are duplicates")
        if classes == 1:
            warnings.append("all calibration images are of one class: their ranges may be narrow")
        if unreadable:
            warnings.append(f"{len(unreadable)} files cannot be read and were skipped")
        if self._noise:
            warnings.append(f"{self._noise} calibration images look like random noise")
        return Health(
            images=count,
            smallest=min(self._sizes, key=_area),
            largest=max(self._sizes, key=_area),
            unreadable=tuple(unreadable),
            duplicates=duplicates,
            noise=self._noise,
            classes=classes,
            brightness_min=min(self._brightness),
            brightness_mean=float(np.mean(self._brightness)),
            brightness_max=max(self._brightness),
            preprocessing=preprocessing,
            warnings=tuple(warnings),
        )


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _neighbour_correlation(grey: npt.NDArray[np.floating]) -> float:
    """Of horizontally adjacent pixels; 1 for an image of one colour, which is not noise."""
    a, b = grey[:, :-1].ravel(), grey[:, 1:].ravel()
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 1.0
    return float(np.corrcoef(a, b)[0, 1])


def _drawn(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    if limit is None or limit >= len(items):
        return items
    chosen = np.random.default_rng(seed).choice(len(items), size=limit, replace=False)
    return [items[index] for index in sorted(chosen)]


def _manifest(
    kind: Kind,
    source: str,
    seed: int,
    ids: list[str],
    sha256: str,
    preprocessing: Preprocessing,
    sizes: tuple[Size, ...] = (),
) -> Manifest:
    return Manifest(
        kind=kind, source=source, seed=seed, ids=tuple(ids), sha256=sha256,
        preprocessing=preprocessing, sizes=sizes,
    )  # fmt: skip
