"""What Pillow and rest_deploy.preprocess make of images, written down for the C++ tests.

    python golden.py FOLDER

FOLDER/cases.txt has one case a line, fields separated by tabs:

    resize  KIND WIDTH HEIGHT NEW_WIDTH NEW_HEIGHT INPUT EXPECTED   raw RGB bytes
    photo   FILE WIDTH HEIGHT EXPECTED                              decoded: raw RGB bytes
    tensor  FILE KIND RESIZE CROP HEIGHT WIDTH MEAN STD EXPECTED    float32; commas in MEAN, STD
    refuse  FILE                                                    rest_deploy refuses it
"""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from rest_deploy.contracts import Preprocessing
from rest_deploy.errors import ImageError, RestDeployError
from rest_deploy.photos import PHOTOS
from rest_deploy.preprocess import load_image, normalize, to_pixels

SIZE_PAIRS = 240
ORIENTATION = 0x0112
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

UInt8 = npt.NDArray[np.uint8]


class Folder:
    """Writes files and the lines that name them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        path.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, content: bytes) -> str:
        (self.path / name).write_bytes(content)
        return name

    def case(self, *fields: object) -> None:
        self.lines.append("\t".join(map(str, fields)))

    def close(self) -> None:
        (self.path / "cases.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def noise(width: int, height: int, random: np.random.Generator) -> UInt8:
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def resizes(folder: Folder) -> None:
    """Random size pairs: enlarged, reduced, one axis only, and tall ones squashed, for which
    Pillow 13 exchanges the passes."""
    random = np.random.default_rng(20)
    for index in range(SIZE_PAIRS):
        width, height, new_width, new_height = (int(v) for v in random.integers(32, 140, 4))
        if index % 6 == 0:
            height = int(random.integers(300, 700))
        if index % 10 == 1:
            new_width = width
        if index % 10 == 2:
            new_height = height
        kind = "bilinear" if index % 3 == 0 else "bicubic"
        pixels = noise(width, height, random)
        resized = Image.fromarray(pixels).resize((new_width, new_height), FILTERS[kind])
        source = folder.put(f"resize{index}.in", pixels.tobytes())
        target = folder.put(f"resize{index}.out", resized.tobytes())
        folder.case("resize", kind, width, height, new_width, new_height, source, target)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(header: tuple[int, int, int, int], *chunks: tuple[bytes, bytes]) -> bytes:
    """header: width, height, bits, colour type."""
    content = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in content
    )


def raw_png(width: int, height: int, bits: int, colour: int, channels: int) -> bytes:
    """Noise in a format that Pillow reads and does not write."""
    random = np.random.default_rng(bits * 10 + colour)
    row_bytes = (width * channels * bits + 7) // 8
    rows = random.integers(0, 256, (height, row_bytes), dtype=np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    return png((width, height, bits, colour), (b"IDAT", zlib.compress(data)))


def with_chunk(file: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk before its pixels."""
    at = file.index(b"IDAT") - 4
    length, checksum = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
    return file[:at] + length + kind + data + checksum + file[at:]


def exif(orientation: int, endian: Literal["<", ">"] = "<") -> bytes:
    head = b"II*\0" if endian == "<" else b"MM\0*"
    entry = struct.pack(endian + "HHIHH", ORIENTATION, 3, 1, orientation, 0)
    return head + struct.pack(endian + "IH", 8, 1) + entry + b"\0\0\0\0"


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def photo_path(file: str) -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-image is not installed: pip install 'rest-deploy[demo]'")
    return Path(spec.origin).parent / "data" / file


def photo(label: str) -> Image.Image:
    file = next(found.file for found in PHOTOS if found.label == label)
    return Image.open(photo_path(file)).convert("RGB")


def jpegs() -> Iterator[tuple[str, bytes]]:
    image = photo("coffee")
    odd = image.crop((3, 5, 264, 200))  # no multiple of a block
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        yield f"{name}.jpg", saved(image, "JPEG", subsampling=sampling, quality=90)
        yield f"{name}_odd.jpg", saved(odd, "JPEG", subsampling=sampling, quality=60)
    yield "progressive.jpg", saved(odd, "JPEG", progressive=True)
    yield "grey.jpg", saved(odd.convert("L"), "JPEG")
    yield "cmyk.jpg", saved(odd.convert("CMYK"), "JPEG")
    yield "restart.jpg", saved(odd, "JPEG", restart_marker_blocks=3)
    yield "rgb.jpg", saved(odd, "JPEG", keep_rgb=True)
    for value in range(1, 9):
        yield f"exif{value}.jpg", saved(odd, "JPEG", exif=exif(value, "<" if value % 2 else ">"))
    yield "xmp6.jpg", saved(odd, "JPEG", xmp=xmp(6))
    yield "exif0.jpg", saved(odd, "JPEG", exif=exif(0), xmp=xmp(6))
    yield "bad_exif.jpg", saved(odd, "JPEG", exif=b"Exif\0\0no TIFF header", xmp=xmp(6))


def pngs() -> Iterator[tuple[str, bytes]]:
    image = photo("chelsea").crop((7, 9, 250, 201))
    alpha = Image.fromarray(noise(*image.size, np.random.default_rng(1))).convert("L")
    clear = image.copy()
    clear.putalpha(alpha)
    yield "rgb.png", saved(image, "PNG")
    yield "grey.png", saved(image.convert("L"), "PNG")
    yield "alpha.png", saved(clear, "PNG")
    yield "grey_alpha.png", saved(clear.convert("LA"), "PNG")
    palette = image.quantize(37)
    yield "palette.png", saved(palette, "PNG")
    yield "palette4.png", saved(image.quantize(11), "PNG", bits=4)
    yield "palette_clear.png", saved(palette, "PNG", transparency=bytes(range(37)))
    yield "rgb_clear.png", saved(image, "PNG", transparency=image.getpixel((3, 3)))
    yield "one_bit.png", saved(image.convert("1"), "PNG")
    wide = np.asarray(image.convert("L"), dtype=np.uint16) * 251 + 17
    yield "grey16.png", saved(Image.fromarray(wide), "PNG")
    for name, bits, colour, channels in (
        *(("grey2.png", 2, 0, 1), ("grey4.png", 4, 0, 1), ("rgb16.png", 16, 2, 3)),
        *(("grey_alpha16.png", 16, 4, 2), ("rgba16.png", 16, 6, 4)),
    ):
        yield name, raw_png(67, 45, bits, colour, channels)
    for value in (3, 6):
        yield f"exif{value}.png", saved(image, "PNG", exif=exif(value))
    profile = exif(8).hex()
    text = f"\nexif\n{len(profile) // 2:8}\n{profile[:20]}\n{profile[20:]}\n".encode()
    kind = b"Raw profile type exif\0\0"
    yield "profile8.png", with_chunk(saved(image, "PNG"), b"zTXt", kind + zlib.compress(text))
    international = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(7)
    yield "xmp7.png", with_chunk(saved(image, "PNG"), b"iTXt", international)


def refused() -> Iterator[tuple[str, bytes]]:
    random = np.random.default_rng(5)
    image = photo("rocket").crop((0, 0, 200, 150))
    for name, file in (
        ("cut.jpg", saved(image, "JPEG")),
        ("cut_progressive.jpg", saved(image, "JPEG", progressive=True)),
        ("cut.png", saved(image, "PNG")),
    ):
        for percent in (1, 20, 50, 90):
            yield f"{percent}_{name}", file[: max(3, len(file) * percent // 100)]
    yield "empty.jpg", b""
    yield "noise.jpg", b"\xff\xd8\xff" + random.bytes(5000)
    yield "noise.png", b"\x89PNG\r\n\x1a\n" + random.bytes(5000)
    yield "text.txt", b"not an image"
    yield "gif_header.gif", b"GIF89a"
    yield "small.png", saved(image.resize((31, 40)), "PNG")
    nothing = (b"IDAT", zlib.compress(b"\0"))
    yield "huge.png", png((9500, 9500, 1, 0), nothing)
    yield "endless.png", png((2**31 - 1, 2**31 - 1, 8, 2), nothing)
    jpeg = saved(image, "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    yield "huge.jpg", jpeg[:start] + struct.pack(">HH", 9500, 9500) + jpeg[start + 4 :]
    yield "no_end.jpg", jpeg[:-2]
    yield "bad_exif.png", with_chunk(saved(image, "PNG"), b"eXIf", b"MM no TIFF")


def files(folder: Folder) -> None:
    for name, content in (*jpegs(), *pngs(), *skimage_photos()):
        try:
            pixels = np.asarray(load_image(content))
        except ImageError as error:
            raise SystemExit(f"{name}: {error}; expected an image that is read") from error
        height, width, _ = pixels.shape
        source = folder.put(name, content)
        folder.case("photo", source, width, height, folder.put(f"{name}.rgb", pixels.tobytes()))
    for name, content in refused():
        try:
            load_image(content)
        except ImageError:
            folder.case("refuse", folder.put(name, content))
        else:
            raise SystemExit(f"{name} was read; expected a refusal")


def skimage_photos() -> Iterator[tuple[str, bytes]]:
    for found in PHOTOS:
        content = photo_path(found.file).read_bytes()
        if content.startswith((b"\xff\xd8\xff", b"\x89PNG")):
            yield f"skimage_{found.file}", content


def tensors(folder: Folder) -> None:
    """From the file to the tensor, in the card's square and in other sizes."""
    cards = [(256, 224, "bicubic"), (235, 224, "bilinear"), (224, 224, "bicubic")]
    sizes = [None, (224, 224), (192, 256), (97, 131)]
    names = ["420.jpg", "exif6.jpg", "grey16.png", "alpha.png", "tall.png"]
    names += [f"skimage_{found.file}" for found in PHOTOS if found.file.endswith(("g", "G"))][:6]
    tall = noise(50, 240, np.random.default_rng(8))  # its passes are exchanged
    folder.put("tall.png", saved(Image.fromarray(tall), "PNG"))
    for index, name in enumerate(name for name in names if (folder.path / name).is_file()):
        image = load_image(folder.path / name)
        for turn, (resize, crop, kind) in enumerate(cards):
            how = Preprocessing(
                resize=resize,
                crop=crop,
                interpolation="bicubic" if kind == "bicubic" else "bilinear",
                mean=IMAGENET[0],
                std=IMAGENET[1],
            )
            size = sizes[(index + turn) % len(sizes)]
            expected = normalize(to_pixels(image, how, size), how)
            height, width = size or (0, 0)
            target = folder.put(f"{name}.{turn}.f32", expected.tobytes())
            mean, std = (",".join(map(repr, values)) for values in IMAGENET)
            folder.case("tensor", name, kind, resize, crop, height, width, mean, std, target)


def main() -> None:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the huge ones are meant
    if int(PIL.__version__.split(".")[0]) < 13:
        raise SystemExit(
            f"Pillow {PIL.__version__} is installed; expected 13 or newer, whose resize the C++ "
            "code reproduces (older ones never exchange the passes)"
        )
    folder = Folder(Path(sys.argv[1]))
    resizes(folder)
    files(folder)
    tensors(folder)
    folder.close()


if __name__ == "__main__":
    try:
        main()
    except RestDeployError as error:
        raise SystemExit(f"error: {error}") from error
