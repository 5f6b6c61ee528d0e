"""Any picture file -> the 256 x 256 JPEG that is stored, and the sums its pixels add to the mean.

Called by `fastalex.data.prepare`, in its worker processes: needs NumPy, Pillow and simplejpeg only.

Shorter side to 256 with an antialiased bicubic filter, then the centre (Krizhevsky et al. 2012,
section 2). Stored as baseline JPEG, 4:2:0, quality 90. Strict: a decoder that patches over damage
would put grey bars into the training set, so anything short of a whole picture is refused.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from fastalex.inputs import STORED_SIDE as SIDE

QUALITY = 90
SUBSAMPLING = "420"
MAX_PIXELS = 178_956_970
"""Larger pictures are refused: Pillow's limit for decompression bombs."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
"""What Pillow may open; not EPS and the like, which run an interpreter."""

_WIDEST = 16
"""A picture longer than this many times its shorter side is cut to it first, to save memory."""


class RefusedError(Exception):
    """This file cannot be stored; the message is the reason."""


class Converted(NamedTuple):
    """A chunk of files, converted."""

    jpegs: list[bytes | str]
    """The stored JPEG, or the reason for the refusal."""
    pixel_sum: np.ndarray
    """(256, 256, 3) uint32, over the chunk's stored images."""
    products: np.ndarray
    """(3, 3) int64: sum over all pixels of the outer product of their RGB values."""


def convert_chunk(paths: list[Path]) -> Converted:
    """Converts up to 4,096 files; the sums are exact, of the pixels as they will be decoded."""
    jpegs: list[bytes | str] = []
    pixel_sum = np.zeros((SIDE, SIDE, 3), np.uint32)
    products = np.zeros((3, 3), np.int64)
    for path in paths:
        try:
            jpeg = convert(path.read_bytes())
        except RefusedError as error:
            jpegs.append(str(error))
        except OSError as error:
            jpegs.append(f"unreadable: {error.strerror or error}")
        else:
            jpegs.append(jpeg)
            pixels = simplejpeg.decode_jpeg(jpeg)
            pixel_sum += pixels
            planes = np.ascontiguousarray(pixels.reshape(-1, 3).T).astype(np.int64)
            products += planes @ planes.T
    return Converted(jpegs, pixel_sum, products)


def convert(data: bytes) -> bytes:
    """A picture file's bytes -> the stored JPEG's. Raises `RefusedError`."""
    if not data:
        raise RefusedError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow only warns of is either harmless or raised
        image = _decode_jpeg(data) if data[:2] == b"\xff\xd8" else _decode_other(data)
    pixels = np.ascontiguousarray(np.asarray(_centre_square(image)))
    return simplejpeg.encode_jpeg(
        pixels, quality=QUALITY, colorspace="RGB", colorsubsampling=SUBSAMPLING
    )


def _decode_jpeg(data: bytes) -> Image.Image:
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(int(width), int(height))
        if colors in ("CMYK", "YCCK"):
            simplejpeg.decode_jpeg(data, colorspace="CMYK")  # for its strictness
            image = Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB")
        else:
            image = Image.fromarray(simplejpeg.decode_jpeg(data))
    except (ValueError, OSError) as error:
        raise RefusedError(f"damaged JPEG: {error}") from error
    return _upright(image, _orientation(data))


def _orientation(data: bytes) -> int:
    try:
        return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block does not spoil the picture
        return 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _decode_other(data: bytes) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RefusedError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, damage would go unseen")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except OSError as error:
        raise RefusedError("not an image") from error
    except Exception as error:
        raise RefusedError(f"damaged image: {error}") from error
    try:
        _check_size(*image.size)
        orientation = image.getexif().get(0x0112, 1)
        return _upright(_to_rgb(image), orientation)
    except RefusedError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds for damaged files
        raise RefusedError(f"damaged {image.format}: {error}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise RefusedError(f"too large: {width} x {height} pixels, at most {MAX_PIXELS} are read")


def _to_rgb(image: Image.Image) -> Image.Image:
    """16-bit grey is scaled to 8; transparent pixels show a white ground."""
    if image.mode == "F":
        raise RefusedError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise RefusedError("32-bit pixels beyond 0..65535 have no agreed range")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        ground = Image.new("RGBA", colors.size, "white")
        return Image.alpha_composite(ground, colors).convert("RGB")
    return image.convert("RGB")


def _centre_square(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = _WIDEST * min(width, height)
    if max(width, height) > longest:
        left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
        image = image.crop((left, top, width - left, height - top))
        width, height = image.size
    scale = SIDE / min(width, height)
    width, height = max(round(width * scale), SIDE), max(round(height * scale), SIDE)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))
