"""THE definition of image -> tensor; calibration, verification, runtime and services use it.

Follows the official evaluation transform: shorter side to `resize` (antialiased, Pillow),
centre crop, 0..1, normalization. Images are brought to 8-bit RGB first:

- EXIF orientation is applied; CMYK, palette, grey and YCbCr images are converted;
- alpha is dropped, not blended, as the training loader's `convert("RGB")` does;
- 16-bit grey keeps its high byte (Pillow's own conversion clips at 255), as 16-bit RGB does.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import SMALLEST_SIDE, Preprocessing
from rest_deploy.errors import ImageError, InputError
from rest_deploy.signature import InputKind

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""Larger images are refused: Pillow's own bound for decompression bombs."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


def at_size(
    preprocessing: Preprocessing, crop: int | None = None, resize: int | None = None
) -> Preprocessing:
    """The same at another input size, in pixels; None keeps what is there.

    A new crop without `resize` keeps the ratio of the two, rounded down as the official evaluation
    does: 384 of 224/256 is cut from 438. Raises `InputError` unless 32 <= crop <= resize.
    """
    side = preprocessing.crop if crop is None else crop
    scaled = side * preprocessing.resize // preprocessing.crop
    shorter = scaled if resize is None else resize
    if not SMALLEST_SIDE <= side <= shorter:
        raise InputError(
            f"got an input size of {side} cut from images resized to {shorter}; expected "
            f"{SMALLEST_SIDE} <= input size <= resize"
        )
    return msgspec.structs.replace(preprocessing, crop=side, resize=shorter)


def load_image(source: str | Path | bytes | Image | UInt8) -> Image:
    """Decode to an upright 8-bit RGB image.

    source: a path, encoded bytes, a PIL image, or an array (H, W, 3) / (H, W) of uint8, RGB.
    Raises `ImageError` naming the file and what is wrong with it.
    """
    from PIL import Image, UnidentifiedImageError

    name = str(source) if isinstance(source, str | Path) else "the image"
    if isinstance(source, np.ndarray):
        return Image.fromarray(_checked_array(source)).convert("RGB")
    try:
        if isinstance(source, Image.Image):
            return _decode(source, name)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return _decode(opened, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"no such image: {name}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image Pillow can read") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise ImageError(f"{name} cannot be decoded: {error or type(error).__name__}") from error


def to_pixels(
    image: Image, preprocessing: Preprocessing, size: tuple[int, int] | None = None
) -> UInt8:
    """Resize and crop. Returns (crop, crop, 3) uint8, RGB; with `size` (height, width, 3).

    size: (height, width) instead of the card's square, cut from as much of the image as that is:
    resized until it covers `size` times resize / crop, then cropped in the centre.
    """
    from PIL.Image import Resampling

    filters = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}
    width, height = image.size
    out_height, out_width = size or (preprocessing.crop, preprocessing.crop)
    cover_height = round(preprocessing.resize * out_height / preprocessing.crop)
    cover_width = round(preprocessing.resize * out_width / preprocessing.crop)
    # The longer side is floored, the crop offset rounded half to even: torchvision's arithmetic.
    if cover_height * width >= cover_width * height:
        new_width, new_height = int(cover_height * width / height), cover_height
    else:
        new_width, new_height = cover_width, int(cover_width * height / width)
    if new_width * new_height > MAX_PIXELS:
        raise ImageError(
            f"an image of {width}x{height} becomes {new_width}x{new_height} when its shorter "
            f"side is {min(new_width, new_height)}; expected at most {MAX_PIXELS} pixels"
        )
    if (new_width, new_height) != (width, height):
        image = image.resize((new_width, new_height), filters[preprocessing.interpolation])
    left = round((new_width - out_width) / 2.0)
    top = round((new_height - out_height) / 2.0)
    box = (left, top, left + out_width, top + out_height)
    return np.asarray(image.crop(box), dtype=np.uint8)


def normalize(pixels: UInt8, preprocessing: Preprocessing) -> Float32:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32, `(value / 255 - mean) / std` in float32."""
    mean = np.asarray(preprocessing.mean, dtype=np.float32)
    std = np.asarray(preprocessing.std, dtype=np.float32)
    values = (pixels.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def pixels_of(images: Float32, preprocessing: Preprocessing) -> UInt8:
    """The inverse of `normalize`, exact: (N, 3, H, W) float32 -> (N, H, W, 3) uint8, RGB.

    Raises `ImageError` for values that no pixel has after `normalize`.
    """
    pixels = nearest_pixels(images, preprocessing)
    if not np.array_equal(_normalized(pixels, preprocessing), images):
        raise ImageError(
            "these images are not normalized 8-bit pixels; expected some, because the model takes "
            "pixels and normalizes them itself",
            hint="give photos, or an array of uint8; or export with --input float",
        )
    return pixels


def nearest_pixels(images: Float32, preprocessing: Preprocessing) -> UInt8:
    """(N, 3, H, W) normalized -> the closest (N, H, W, 3) uint8. NaN has none: `ImageError`."""
    if not np.isfinite(images).all():
        raise ImageError("images with NaN or infinity have no pixels")
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    values = (images.transpose(0, 2, 3, 1) * std + mean) * np.float32(255.0)
    return np.ascontiguousarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def to_pixel_grid(images: Float32, preprocessing: Preprocessing) -> Float32:
    """(N, 3, H, W) normalized -> the nearest images that are made of 8-bit pixels, normalized."""
    return _normalized(nearest_pixels(images, preprocessing), preprocessing)


def feed(images: Float32, kind: InputKind, preprocessing: Preprocessing) -> Float32 | UInt8:
    """Normalized (N, 3, H, W) as a model of that input kind takes them: themselves, or the pixels
    (N, H, W, 3) they were made of. Raises `ImageError` where there are none."""
    return images if kind == "float" else pixels_of(images, preprocessing)


def _normalized(pixels: UInt8, preprocessing: Preprocessing) -> Float32:
    """(N, H, W, 3) -> (N, 3, H, W)"""
    return np.stack([normalize(image, preprocessing) for image in pixels])


def to_tensor(image: Image, preprocessing: Preprocessing) -> Float32:
    """RGB image -> normalized (3, crop, crop) float32."""
    return normalize(to_pixels(image, preprocessing), preprocessing)


def to_input(
    image: Image,
    kind: InputKind,
    preprocessing: Preprocessing,
    size: tuple[int, int] | None = None,
) -> Float32 | UInt8:
    """RGB image -> what a model of that input kind takes: (3, height, width) float32, normalized,
    or (height, width, 3) uint8. size: see `to_pixels`."""
    pixels = to_pixels(image, preprocessing, size)
    return normalize(pixels, preprocessing) if kind == "float" else pixels


def list_images(directory: Path) -> list[Path]:
    """Image files below `directory`, sorted. Raises `ImageError` when there is none."""
    if not directory.is_dir():
        raise ImageError(f"{directory} is not a folder of images")
    found = sorted(
        p for p in directory.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )
    if not found:
        raise ImageError(
            f"no images below {directory}", hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return found


def _decode(image: Image, name: str) -> Image:
    from PIL import ImageOps

    _check_size(image, name)
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image), name)


def _check_size(image: Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width}x{height} = {width * height / 1e6:.0f} megapixels; "
            f"expected at most {MAX_PIXELS / 1e6:.0f}",
            hint="scale it down first",
        )
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(
            f"{name} is {width}x{height}; expected at least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
        )


def _to_rgb(image: Image, name: str) -> Image:
    from PIL import Image as Pil

    if image.mode.startswith("I"):  # "I;16" and its byte orders, "I" (32 bit)
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError(f"{name} has 32-bit integer pixels beyond 0..65535; expected 16 bit")
        return Pil.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{name} has float pixels; expected 8 or 16 bit integers")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB makes Pillow warn; the colours are the same
    return image.convert("RGB")


def _checked_array(pixels: UInt8) -> UInt8:
    shape_fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not shape_fits:
        raise ImageError(
            f"got an array of shape {pixels.shape} and type {pixels.dtype}; "
            "expected (height, width, 3) uint8 in RGB order"
        )
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        raise ImageError(
            f"the image is {pixels.shape[1]}x{pixels.shape[0]}; "
            f"expected at least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
        )
    return pixels
