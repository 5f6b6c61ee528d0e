"""One shard: WebDataset tar, DALI index, and the part it adds to the dataset's index and sums.

For `fastalex.data.prepare`. A shard's part is written last: where there is a part, its tar and its
.idx are on the disk, whole.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastalex import files
from fastalex.data._workers import CHUNK, Convert
from fastalex.data.shards import INDEX, UNFINISHED, shard_name
from fastalex.data.sources import Image
from fastalex.inputs import STORED_SIDE as SIDE

_BLOCK = tarfile.BLOCKSIZE


@dataclass(slots=True)
class Part:
    """What a shard holds."""

    index: np.ndarray
    """(n,) of `INDEX`."""
    names: list[str]
    rejected: list[tuple[str, int, str]]
    """Name, label, reason."""
    pixel_sum: np.ndarray
    """(256, 256, 3) int64."""
    products: np.ndarray
    """(3, 3) int64."""
    tar_size: int


def load_part(out: Path, split: str, number: int) -> Part | None:
    """The part of a finished shard, or None."""
    tar = out / shard_name(split, number)
    path = _part_path(out, split, number)
    if not path.is_file() or not tar.is_file():
        return None
    with np.load(path) as stored:
        text = json.loads(stored["text"].tobytes())
        part = Part(
            index=stored["index"],
            names=text["names"],
            rejected=[tuple(item) for item in text["rejected"]],
            pixel_sum=stored["pixel_sum"],
            products=stored["products"],
            tar_size=text["tar_size"],
        )
    return part if tar.stat().st_size == part.tar_size else None


def write_shard(
    out: Path,
    split: str,
    number: int,
    images: list[Image],
    first_id: int,
    convert: Convert,
    advance: Callable[[int], None],
) -> Part:
    """Converts `images` into shard `number`; the first one stored gets the id `first_id`."""
    part = Part(
        index=np.zeros(0, INDEX),
        names=[],
        rejected=[],
        pixel_sum=np.zeros((SIDE, SIDE, 3), np.int64),
        products=np.zeros((3, 3), np.int64),
        tar_size=0,
    )
    rows: list[tuple[int, int, int, int, int]] = []
    lines: list[str] = []
    chunks = [images[at : at + CHUNK] for at in range(0, len(images), CHUNK)]
    with files.whole(out / shard_name(split, number)) as tar:
        converted = convert([image.path for image in chunk] for chunk in chunks)
        for chunk, result in zip(chunks, converted, strict=True):
            for image, jpeg in zip(chunk, result.jpegs, strict=True):
                if isinstance(jpeg, str):
                    part.rejected.append((image.name, image.label, jpeg))
                    continue
                key = f"{first_id + len(rows):09d}"
                label = str(image.label).encode()
                at = _add(tar, f"{key}.jpg", jpeg)
                label_at = _add(tar, f"{key}.cls", label)
                lines.append(
                    f"jpg {at} {len(jpeg)} {key}.jpg cls {label_at} {len(label)} {key}.cls\n"
                )
                rows.append((at, len(jpeg), number, image.label, zlib.crc32(jpeg)))
                part.names.append(image.name)
            part.pixel_sum += result.pixel_sum
            part.products += result.products
            advance(len(chunk))
        tar.write(bytes(2 * _BLOCK))
        part.tar_size = tar.tell()
    part.index = np.array(rows, INDEX)
    idx = out / shard_name(split, number).replace(".tar", ".idx")
    files.write(idx, f"v1.2 {len(lines)}\n{''.join(lines)}".encode())
    _save_part(out, split, number, part)
    return part


def _add(tar: BinaryIO, name: str, data: bytes) -> int:
    """Appends a tar member and returns the offset of its data."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.write(header.tobuf(tarfile.USTAR_FORMAT))
    at = tar.tell()
    tar.write(data)
    tar.write(bytes(-len(data) % _BLOCK))
    return at


def _save_part(out: Path, split: str, number: int, part: Part) -> None:
    text = {"names": part.names, "rejected": part.rejected, "tar_size": part.tar_size}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        index=part.index,
        pixel_sum=part.pixel_sum,
        products=part.products,
        text=np.frombuffer(json.dumps(text).encode(), np.uint8),
    )
    files.write(_part_path(out, split, number), buffer.getvalue())


def _part_path(out: Path, split: str, number: int) -> Path:
    return out / UNFINISHED / shard_name(split, number).replace(".tar", ".npz")
