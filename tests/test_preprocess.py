"""Image -> tensor against references written here, and every kind of file there is."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rest_deploy import preprocess
from rest_deploy.cards import load_card
from rest_deploy.contracts import Preprocessing
from rest_deploy.errors import ImageError
from rest_deploy.preprocess import (
    MAX_PIXELS,
    list_images,
    load_image,
    normalize,
    to_pixels,
    to_tensor,
)

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

OFFICIAL = load_card("lite").preprocessing
SMALL = Preprocessing(
    resize=48, crop=40, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
EXIF_ORIENTATION = 0x0112

# From the stored pixels to the upright ones, by the EXIF standard's definition of each value.
UPRIGHT: dict[int, Callable[[UInt8], UInt8]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def photo(width: int, height: int, seed: int = 0) -> UInt8:
    """(height, width, 3): smooth colour gradients with noise, different in every channel."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    channels = np.stack([x * 180 // width, y * 180 // height, (x + y) * 90 // (width + height)], -1)
    return (channels + noise).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many grey pixels and holds almost none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def reference(rgb: UInt8, how: Preprocessing) -> Float64:
    """The official evaluation transform (torchvision), spelled out in float64."""
    height, width = rgb.shape[:2]
    if width < height:
        size = (how.resize, int(how.resize * height / width))
    else:
        size = (int(how.resize * width / height), how.resize)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    resized = np.asarray(Image.fromarray(rgb).resize(size, filters[how.interpolation]))
    top = round((resized.shape[0] - how.crop) / 2.0)
    left = round((resized.shape[1] - how.crop) / 2.0)
    crop = resized[top : top + how.crop, left : left + how.crop].astype(np.float64)
    planes = [(crop[..., c] / 255 - how.mean[c]) / how.std[c] for c in range(3)]
    return np.stack(planes)


def antialiased(rgb: UInt8, width: int, height: int, kind: str) -> UInt8:
    """Antialiased resize by its definition: a filter as wide as the reduction, axis by axis."""

    def response(t: Float64) -> Float64:
        """The filter's weight at distances t >= 0."""
        near, far = ((1.5 * t - 2.5) * t * t + 1), (((t - 5) * t + 8) * t - 4) * -0.5
        cubic: Float64 = np.where(t < 1, near, np.where(t < 2, far, 0.0))
        linear: Float64 = np.maximum(1 - t, 0)
        return cubic if kind == "bicubic" else linear

    def weights(source: int, target: int) -> Float64:
        scale = source / target
        centre = (np.arange(target)[:, None] + 0.5) * scale
        distance = (np.arange(source)[None] + 0.5 - centre) / max(scale, 1.0)
        found = response(np.abs(distance))
        total: Float64 = found.sum(axis=1, keepdims=True)
        return found / total

    def round_off(values: Float64) -> Float64:
        return np.clip(np.floor(values + 0.5), 0, 255)

    across = round_off(np.einsum("ts,hsc->htc", weights(rgb.shape[1], width), rgb.astype(float)))
    down = round_off(np.einsum("ts,swc->twc", weights(rgb.shape[0], height), across))
    return down.astype(np.uint8)


def assert_equals_reference(rgb: UInt8, how: Preprocessing) -> None:
    tensor = to_tensor(load_image(rgb), how)
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, how.crop, how.crop)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, reference(rgb, how), rtol=0, atol=2e-6)


SIZES = {
    "landscape": (431, 287),
    "portrait": (257, 390),
    "square": (300, 300),
    "already right": (256, 256),
    "enlarged": (40, 33),
    "odd crop offset": (259, 256),
}


class TestReference:
    @pytest.mark.parametrize("how", [OFFICIAL, SMALL], ids=["official", "small"])
    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_equal(self, size: tuple[int, int], how: Preprocessing) -> None:
        assert_equals_reference(photo(*size), how)

    @pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
    @pytest.mark.parametrize("size", [(150, 97), (61, 90)], ids=["landscape", "portrait"])
    def test_resize_is_the_antialiased_one(self, size: tuple[int, int], kind: Any) -> None:
        rgb = photo(*size)
        how = Preprocessing(resize=48, crop=48, interpolation=kind, mean=SMALL.mean, std=SMALL.std)
        width, height = (int(48 * side / min(size)) for side in size)
        top, left = round((height - 48) / 2), round((width - 48) / 2)
        difference = {}
        for name in ("bicubic", "bilinear"):
            resized = antialiased(rgb, width, height, name).astype(int)
            expected = resized[top : top + 48, left : left + 48]
            difference[name] = np.abs(to_pixels(load_image(rgb), how).astype(int) - expected)
        right = difference.pop(kind)
        # One level here and there: Pillow sums in fixed point, so ties round either way.
        assert right.max() <= 1
        assert right.mean() < 0.05
        # Control: the other filter is far outside that.
        assert difference.popitem()[1].mean() > 0.5

    def test_control_a_bgr_swap_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = to_pixels
        monkeypatch.setattr(
            preprocess, "to_pixels", lambda image, how: right(image, how)[..., ::-1]
        )
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_equals_reference(photo(431, 287), OFFICIAL)

    @pytest.mark.parametrize(
        "change",
        [{"interpolation": "bilinear"}, {"resize": 255}, {"std": (0.229, 0.224, 0.226)}],
        ids=str,
    )
    def test_control_another_transform_is_noticed(self, change: dict[str, Any]) -> None:
        fields = {name: getattr(OFFICIAL, name) for name in OFFICIAL.__struct_fields__}
        other = Preprocessing(**(fields | change))
        rgb = photo(431, 287)
        expected = reference(rgb, OFFICIAL)
        assert np.abs(to_tensor(load_image(rgb), other) - expected).max() > 1e-3

    @pytest.mark.parametrize(("colour", "channel"), [((255, 0, 0), 0), ((0, 0, 255), 2)])
    def test_channels_are_red_green_blue(
        self, colour: tuple[int, int, int], channel: int, tmp_path: Path
    ) -> None:
        path = tmp_path / "colour.png"
        Image.new("RGB", (64, 64), colour).save(path)
        tensor = to_tensor(load_image(path), OFFICIAL)
        for plane in range(3):
            value = 1.0 if plane == channel else 0.0
            expected = (value - OFFICIAL.mean[plane]) / OFFICIAL.std[plane]
            np.testing.assert_allclose(tensor[plane], expected, rtol=1e-6)

    def test_normalize_every_value(self) -> None:
        pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
        tensor = normalize(pixels, OFFICIAL)
        assert tensor.shape == (3, 256, 1)
        for plane in range(3):
            expected = (np.arange(256) / 255 - OFFICIAL.mean[plane]) / OFFICIAL.std[plane]
            np.testing.assert_allclose(tensor[plane, :, 0], expected, rtol=0, atol=1e-6)

    def test_all_sources_give_the_same(self, tmp_path: Path) -> None:
        rgb = photo(64, 48)
        image = Image.fromarray(rgb)
        path = tmp_path / "photo.png"
        image.save(path)
        sources: list[str | Path | bytes | Image.Image | UInt8] = [
            path,
            str(path),
            path.read_bytes(),
            image,
            rgb,
        ]
        for source in sources:
            assert np.array_equal(np.asarray(load_image(source)), rgb), type(source)


class TestOrientation:
    @pytest.mark.parametrize("value", UPRIGHT)
    def test_image_is_turned_upright(self, value: int) -> None:
        stored = photo(48, 36)
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = value
        data = encoded(Image.fromarray(stored), "PNG", exif=exif)
        assert np.array_equal(np.asarray(load_image(data)), UPRIGHT[value](stored))

    def test_the_eight_values_are_eight_different_images(self) -> None:
        """Negative control: the photo has no symmetry that would hide a wrong turn."""
        stored = photo(48, 36)
        assert (
            len({turn(stored).tobytes() + bytes(turn(stored).shape) for turn in UPRIGHT.values()})
            == 8
        )

    def test_jpeg_of_a_phone_held_upright(self) -> None:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        stored = np.zeros((40, 60, 3), np.uint8)
        stored[:, :30] = (250, 10, 10)  # the left of the sensor is the top of the photo
        image = load_image(encoded(Image.fromarray(stored), "JPEG", exif=exif))
        assert image.size == (40, 60)
        top, bottom = image.getpixel((20, 5)), image.getpixel((20, 55))
        assert isinstance(top, tuple)
        assert isinstance(bottom, tuple)
        assert top[0] > 200 > 50 > bottom[0]


class TestModes:
    """Every pixel format becomes 8-bit RGB; the expectation is computed without Pillow."""

    GREY = photo(48, 36)[..., 0].copy()

    def rgb(self, image: Image.Image, kind: str = "PNG", **options: Any) -> UInt8:
        loaded = load_image(encoded(image, kind, **options))
        assert loaded.mode == "RGB"
        return np.asarray(loaded)

    def test_grey(self) -> None:
        expected = np.repeat(self.GREY[..., None], 3, axis=2)
        assert np.array_equal(self.rgb(Image.fromarray(self.GREY)), expected)
        assert np.array_equal(np.asarray(load_image(self.GREY)), expected)

    def test_one_bit(self) -> None:
        bits = self.GREY > 90
        expected = np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2)
        assert 0 < bits.mean() < 1
        assert np.array_equal(self.rgb(Image.fromarray(bits)), expected)

    def test_rgba_drops_alpha_and_does_not_blend(self) -> None:
        colour, alpha = photo(48, 36), photo(48, 36, seed=1)[..., :1]
        alpha[:10] = 0
        image = Image.fromarray(np.concatenate([colour, alpha], axis=2))
        assert image.mode == "RGBA"
        assert np.array_equal(self.rgb(image), colour)

    def test_grey_with_alpha(self) -> None:
        image = Image.fromarray(self.GREY)
        image.putalpha(Image.fromarray(photo(48, 36, seed=1)[..., 1]))
        assert image.mode == "LA"
        assert np.array_equal(self.rgb(image), np.repeat(self.GREY[..., None], 3, axis=2))

    # Pillow's own advice, to the author of the file.
    @pytest.mark.filterwarnings("ignore:Palette images with Transparency")
    @pytest.mark.parametrize("transparency", [None, 3, bytes(range(255, -1, -1))], ids=repr)
    def test_palette(self, transparency: int | bytes | None) -> None:
        palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
        image = Image.fromarray(self.GREY).convert("P")
        indices = np.asarray(image)
        image.putpalette(palette.tobytes())
        options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
        assert np.array_equal(self.rgb(image, **options), palette[indices])

    @pytest.mark.filterwarnings("error")
    def test_palette_with_transparency_is_quiet(self) -> None:
        image = Image.fromarray(self.GREY).convert("P")
        self.rgb(image, transparency=bytes(256))

    def test_cmyk_jpeg(self) -> None:
        ink = np.zeros((36, 48, 4), np.uint8)
        ink[:, :24, 0] = 255  # cyan
        ink[:, 24:, 1:3] = 255  # magenta and yellow: red
        rgb = self.rgb(Image.fromarray(ink, "CMYK"), "JPEG", quality=100).astype(int)
        assert np.abs(rgb[:, :20] - (0, 255, 255)).max() <= 4
        assert np.abs(rgb[:, 28:] - (255, 0, 0)).max() <= 4

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bit_grey_keeps_the_high_byte(self, kind: str) -> None:
        values = np.linspace(0, 65535, 48 * 36).reshape(36, 48).astype(np.uint16)
        image = Image.fromarray(values)
        assert image.mode == "I;16"
        expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
        assert len(np.unique(expected)) == 256, "a conversion that clips would show"
        assert np.array_equal(self.rgb(image, kind), expected)

    def test_32_bit_integers_of_16_bit_range(self) -> None:
        values = np.arange(48 * 36, dtype=np.int32).reshape(36, 48) * 37
        expected = (values >> 8).astype(np.uint8)
        assert np.array_equal(np.asarray(load_image(Image.fromarray(values)))[..., 0], expected)

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_32_bit_integers_beyond_are_refused(self, value: int) -> None:
        values = np.full((36, 48), value, np.int32)
        with pytest.raises(ImageError, match=r"beyond 0\.\.65535"):
            load_image(Image.fromarray(values))

    def test_float_pixels_are_refused(self) -> None:
        with pytest.raises(ImageError, match="float pixels; expected 8 or 16 bit"):
            load_image(Image.new("F", (48, 36)))

    def test_mode_that_cannot_be_converted_is_refused(self) -> None:
        with pytest.raises(ImageError):
            load_image(Image.new("La", (48, 36)))


class TestRefusals:
    @pytest.mark.parametrize("size", [(31, 31), (31, 64), (64, 31)])
    def test_too_small(self, size: tuple[int, int], tmp_path: Path) -> None:
        path = tmp_path / "small.png"
        Image.new("RGB", size).save(path)
        with pytest.raises(ImageError, match=rf"small\.png is {size[0]}x{size[1]}; expected at"):
            load_image(path)
        with pytest.raises(ImageError, match=rf"is {size[0]}x{size[1]}; expected at least 32x32"):
            load_image(np.zeros((size[1], size[0], 3), np.uint8))

    def test_smallest_is_accepted(self) -> None:
        rgb = photo(32, 32)
        assert load_image(rgb).size == (32, 32)
        assert load_image(encoded(Image.fromarray(rgb), "PNG")).size == (32, 32)
        assert to_tensor(load_image(rgb), OFFICIAL).shape == (3, 224, 224)

    def test_100_megapixels_are_refused_by_the_header(self) -> None:
        with pytest.raises(ImageError, match="10000x10000 = 100 megapixels; expected at most 89"):
            load_image(png_header(10_000, 10_000))

    def test_decompression_bomb(self) -> None:
        with pytest.raises(ImageError, match="the image is too large"):
            load_image(png_header(100_000, 100_000))

    def test_a_header_within_the_limit_passes_the_size_check(self) -> None:
        """Negative control: then it is the missing pixels that are refused."""
        assert MAX_PIXELS > 1000 * 1000
        with pytest.raises(ImageError, match="cannot be decoded"):
            load_image(png_header(1000, 1000))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_truncated(self, kind: str, tmp_path: Path) -> None:
        data = encoded(Image.fromarray(photo(64, 64)), kind)
        path = tmp_path / "cut.img"
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match=r"cut\.img cannot be decoded"):
            load_image(path)

    def test_text_named_png(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.png"
        path.write_text("this is no image", encoding="utf-8")
        with pytest.raises(ImageError, match=r"notes\.png is not an image") as caught:
            load_image(path)
        assert caught.value.exit_code == 3

    def test_no_bytes(self) -> None:
        with pytest.raises(ImageError, match="not an image"):
            load_image(b"")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"no such image: .*gone\.jpg"):
            load_image(tmp_path / "gone.jpg")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="directory"):
            load_image(tmp_path)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((64, 64, 3), np.float32),
            np.zeros((64, 64, 3), np.uint16),
            np.zeros((64, 64, 3), np.int8),
            np.zeros((3, 64, 64), np.uint8),
            np.zeros((64, 64, 4), np.uint8),
            np.zeros((1, 64, 64, 3), np.uint8),
            np.zeros(64, np.uint8),
            np.zeros((0, 0, 3), np.uint8),
        ],
        ids=lambda array: f"{array.dtype}-{array.shape}",
    )
    def test_arrays_of_another_type_or_shape(self, array: npt.NDArray[Any]) -> None:
        with pytest.raises(ImageError, match="expected"):
            load_image(array)

    @pytest.mark.parametrize("size", [(32, 400_000), (400_000, 32)])
    def test_extreme_aspect_ratio_is_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(ImageError, match=rf"an image of {size[0]}x{size[1]} becomes"):
            to_pixels(Image.new("RGB", size), OFFICIAL)

    def test_wide_panorama_gives_its_centre(self) -> None:
        rgb = np.zeros((32, 4000, 3), np.uint8)
        rgb[:, 1980:2020] = 255
        pixels = to_pixels(load_image(rgb), OFFICIAL)
        assert pixels.shape == (224, 224, 3)
        assert pixels[112, 112].tolist() == [255, 255, 255]
        assert pixels[112, 0].tolist() == pixels[112, 223].tolist()

    def test_damaged_exif_is_refused_or_ignored(self) -> None:
        data = encoded(Image.fromarray(photo(48, 36)), "WEBP", exif=b"Exif\0\0MM\0\xa6\0\0\0\x08")
        with contextlib.suppress(ImageError):
            load_image(data)


class TestOtherSizes:
    @pytest.mark.parametrize("size", [(300, 200), (200, 300), (250, 250), (1000, 90)])
    def test_the_cards_own_size_changes_nothing(self, size: tuple[int, int]) -> None:
        image = Image.fromarray(photo(*size))
        given = to_pixels(image, OFFICIAL, (OFFICIAL.crop, OFFICIAL.crop))
        np.testing.assert_array_equal(given, to_pixels(image, OFFICIAL))

    @pytest.mark.parametrize("size", [(64, 200), (200, 64), (96, 96), (448, 97)])
    @pytest.mark.parametrize("image", [(300, 200), (90, 400)])
    def test_it_is_filled_with_image(self, size: tuple[int, int], image: tuple[int, int]) -> None:
        white = Image.new("RGB", image, "white")
        pixels = to_pixels(white, OFFICIAL, size)
        assert pixels.shape == (*size, 3)
        assert pixels.min() == 255

    def test_its_centre_is_the_images(self) -> None:
        """Left half black, right half white: the edge stays in the middle."""
        image = Image.new("RGB", (400, 300), "white")
        image.paste("black", (0, 0, 200, 300))
        pixels = to_pixels(image, OFFICIAL, (64, 160))
        assert pixels[:, 77].max() < 32
        assert pixels[:, 83].min() > 223


class TestListImages:
    def test_sorted_with_subfolders_and_any_case(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        for name in ("z.JPG", "a.png", "b/c.webp", "notes.txt", "noext"):
            (tmp_path / name).write_bytes(b"x")
        found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
        assert found == ["a.png", "b/c.webp", "z.JPG"]

    def test_none(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_bytes(b"x")
        with pytest.raises(ImageError, match="no images below") as caught:
            list_images(tmp_path)
        assert ".jpg" in (caught.value.hint or "")

    def test_not_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="is not a folder of images"):
            list_images(tmp_path / "gone")

    def test_folder_named_like_an_image(self, tmp_path: Path) -> None:
        (tmp_path / "album.jpg").mkdir()
        (tmp_path / "a.png").write_bytes(b"x")
        assert list_images(tmp_path) == [tmp_path / "a.png"]
