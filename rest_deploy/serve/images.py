"""Encoded image -> tensor, within limits: nothing is decoded that is too large or not a photo."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import Preprocessing
from rest_deploy.errors import ImageError
from rest_deploy.preprocess import load_image, to_input
from rest_deploy.serve.protocol import Body
from rest_deploy.signature import InputKind

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Of Pillow's decoders. Some of the others start programs or read further files."""


class TooManyPixels(ImageError):
    """A small file that would become a large image."""


def tensor(
    body: Body, kind: InputKind, preprocessing: Preprocessing, max_pixels: int
) -> npt.NDArray[np.generic]:
    """One image as a model of that input kind takes it, (1, 3, crop, crop) float32 or (1, crop,
    crop, 3) uint8, by the same definition as everywhere. Raises `ImageError`."""
    from PIL import Image, UnidentifiedImageError

    if not body:
        raise ImageError(
            "the body is empty; expected an encoded image",
            hint="curl --data-binary @photo.jpg URL",
        )
    try:
        opened = Image.open(io.BytesIO(body), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"the image is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"the body is not an image; expected one of {FORMATS}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise ImageError(f"the image cannot be decoded: {error or type(error).__name__}") from error
    with opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise TooManyPixels(
                f"the image has {width}x{height} pixels; expected at most {max_pixels} in all"
            )
        return to_input(load_image(opened), kind, preprocessing)[np.newaxis]
