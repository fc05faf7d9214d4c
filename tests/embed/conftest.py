"""Small pictures, and runs over them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

SIDE = 36
SIZE = (32, 32)
"""What they are brought to in these tests: the smallest size, for speed."""


def picture(number: int) -> bytes:
    """A PNG of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def fill(folder: Path, count: int, bad: int = 0) -> Path:
    """`count` pictures in two folders, the last `bad` of them damaged."""
    for number in range(count):
        path = folder / f"{number % 2}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = picture(number)
        path.write_bytes(content[:40] if number >= count - bad else content)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of so many, some damaged."""
    return lambda count, bad=0: fill(tmp_path / "pictures", count, bad)
