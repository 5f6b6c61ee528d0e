"""One file -> the JPEG that is stored: geometry, colours, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fastalex.data.jpeg import RefusedError, convert, convert_chunk


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def stored(data: bytes) -> np.ndarray:
    """(256, 256, 3) int64: the pixels of what `convert` makes of `data`."""
    return simplejpeg.decode_jpeg(convert(data)).astype(int)


def mean_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).mean())


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (300, 300), (257, 256), (40, 90), (1, 1)])
def test_shorter_side_to_256_then_the_centre(photos: list[np.ndarray], size: tuple) -> None:
    image = Image.fromarray(photos[0]).resize(size)
    width, height = size
    scale = 256 / min(size)
    width, height = max(256, round(width * scale)), max(256, round(height * scale))
    left, top = (width - 256) // 2, (height - 256) // 2
    expected = image.resize((width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(expected.crop((left, top, left + 256, top + 256)), int)
    assert mean_error(stored(encode(image)), expected) < 3.5


def test_enlarging_and_shrinking_are_antialiased() -> None:
    fine = np.zeros((1024, 1024, 3), np.uint8)
    fine[::2] = 255  # rows that plain subsampling would turn black
    assert mean_error(stored(encode(Image.fromarray(fine))), np.array(127.5)) < 3


def test_stored_as_baseline_420_quality_90(photos: list[np.ndarray]) -> None:
    jpeg = convert(encode(Image.fromarray(photos[0])))
    assert simplejpeg.decode_jpeg_header(jpeg) == (256, 256, "YCbCr", "420")
    with Image.open(io.BytesIO(jpeg)) as image:
        assert "progressive" not in image.info
        reference = Image.open(io.BytesIO(encode(image, "JPEG", quality=90)))
        assert image.quantization == reference.quantization


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(
    photos: list[np.ndarray], orientation: int, format: str
) -> None:
    from PIL import ImageOps

    image = Image.fromarray(photos[0])
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encode(image, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(stored(data), stored(encode(upright)))


def test_a_damaged_exif_block_does_not_spoil_the_picture(photos: list[np.ndarray]) -> None:
    image = Image.fromarray(photos[0])
    data = encode(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x12\x34")
    assert np.array_equal(stored(data), stored(encode(image, "JPEG")))


def test_grey_cmyk_palette_and_16_bit_look_like_the_rgb(photos: list[np.ndarray]) -> None:
    rgb = Image.fromarray(photos[0])
    expected, grey = stored(encode(rgb)), stored(encode(rgb.convert("L")))
    assert mean_error(stored(encode(rgb.convert("CMYK"), "JPEG", quality=95)), expected) < 3
    assert mean_error(stored(encode(rgb.convert("CMYK"), "TIFF")), expected) < 3
    assert mean_error(stored(encode(rgb.convert("P"))), expected) < 25
    assert np.ptp(grey, axis=2).max() == 0
    assert mean_error(stored(encode(rgb.convert("L"), "JPEG", quality=95)), grey) < 2
    sixteen = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    sixteen = np.minimum(sixteen, 65_400) + 100  # still nearest to the same of the 256 levels
    assert mean_error(stored(encode(Image.fromarray(sixteen))), grey) < 1e-9
    bits = rgb.convert("1")
    assert mean_error(stored(encode(bits)), stored(encode(bits.convert("RGB")))) == 0


def test_transparent_pixels_show_a_white_ground(photos: list[np.ndarray]) -> None:
    rgba = np.dstack([photos[0], np.full(photos[0].shape[:2], 255, np.uint8)])
    assert np.array_equal(
        stored(encode(Image.fromarray(rgba))), stored(encode(Image.fromarray(photos[0])))
    )
    rgba[..., 3] = 0
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")):
        assert stored(encode(image)).min() == 255
    half = Image.new("RGBA", (300, 300), (0, 0, 0, 128))
    assert mean_error(stored(encode(half)), np.array(127)) < 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_formats(photos: list[np.ndarray], format: str) -> None:
    image = Image.fromarray(photos[0])
    error = mean_error(stored(encode(image, format)), stored(encode(image)))
    assert error < (25 if format == "GIF" else 6)


def overwritten(jpeg: bytes) -> bytes:
    """Four bytes changed in the middle: most decoders show half a picture and say nothing."""
    middle = len(jpeg) // 2
    return jpeg[:middle] + b"\xff\xd0\xff\xd0" + jpeg[middle + 4 :]


def refusals(photos: list[np.ndarray]) -> dict[str, tuple[bytes, str]]:
    image = Image.fromarray(photos[0])
    jpeg, png = encode(image, "JPEG", quality=95), encode(image)
    return {
        "truncated JPEG": (jpeg[: len(jpeg) // 2], "damaged JPEG: Premature end"),
        "JPEG short of its last byte": (jpeg[:-1], "damaged JPEG: Premature end"),
        "overwritten JPEG": (overwritten(jpeg), "damaged JPEG: Corrupt"),
        "truncated PNG": (png[: len(png) // 2], "damaged PNG: .*truncated"),
        "truncated CMYK": (encode(image.convert("CMYK"), "JPEG")[:20_000], "damaged JPEG"),
        "overwritten CMYK": (overwritten(encode(image.convert("CMYK"), "JPEG")), "damaged JPEG"),
        "text": (b"<html>404 not found</html>", "not an image"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "empty": (b"", "empty file"),
        "floats": (encode(Image.new("F", (9, 9)), "TIFF"), "floating-point"),
        "32 bit": (encode(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF"), "32-bit"),
        "bomb": (encode(Image.new("1", (20_000, 10_000))), "too large|bomb"),
    }


@pytest.mark.parametrize("kind", refusals([np.zeros((427, 640, 3), np.uint8)]))
def test_refused(photos: list[np.ndarray], kind: str) -> None:
    data, reason = refusals(photos)[kind]
    with pytest.raises(RefusedError, match=reason):
        convert(data)


def test_a_very_long_picture_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize

    def small(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        assert max(size) <= 16 * 256
        return resize(image, size, resample)

    monkeypatch.setattr(Image.Image, "resize", small)
    long = np.zeros((3, 60_000, 3), np.uint8)
    long[:, 29_997:30_003] = 255
    pixels = stored(encode(Image.fromarray(long)))
    assert pixels[:, 128].min() > 240


def test_chunk_sums_are_those_of_the_stored_pixels(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.glob("train/*/*.jpg"))[:5]
    link = tmp_path / "gone.jpg"
    link.symlink_to(tmp_path / "nowhere")
    result = convert_chunk([*paths, link])
    assert result.jpegs[-1] == "unreadable: No such file or directory"
    pixels = np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in result.jpegs[:-1]]).astype(int)
    assert np.array_equal(result.pixel_sum, pixels.sum(0))
    flat = pixels.reshape(-1, 3)
    assert np.array_equal(result.products, flat.T @ flat)
