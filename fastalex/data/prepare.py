"""Any source -> a prepared dataset on disk: shards, indices, mean image, colour PCA, rejects.

Called by `fastalex-prepare` and `fastalex.data.open_dataset`. The same source gives the same bytes,
however many workers there are and in whatever order the system lists files. A run that was killed
goes on at the first unfinished shard; dataset.json is written last, so an unfinished dataset does
not open. The format is written out in docs/data.md.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fastalex.data import _files
from fastalex.data._progress import Progress
from fastalex.data._shard_writer import Part, load_part, write_shard
from fastalex.data._workers import Convert, converter
from fastalex.data.jpeg import QUALITY, SUBSAMPLING
from fastalex.data.shards import (
    MANIFEST,
    SIDE,
    UNFINISHED,
    VERSION,
    Dataset,
    is_dataset,
    shard_name,
)
from fastalex.data.sources import Image, Source
from fastalex.errors import RunError, UsageError

IMAGES_PER_SHARD = 40_000
"""About 1 GB at the 25 kB of a stored photograph."""


def prepare(source: Source, out: Path, *, workers: int | None = None) -> Dataset:
    """Writes `source` to the folder `out`, once, and opens it.

    Args:
        source: see `fastalex.data.image_folder`.
        out: a folder that does not exist, is empty, or holds this source prepared or half prepared.
        workers: processes; None takes every core this process may use, 1 works in this process.

    Raises:
        UsageError: `out` holds something else, or `workers` is below 1.
        RunError: no image of a class could be stored, or a file could not be written.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise UsageError(f"prepare: `workers` must be 1 or more, not {workers}")
    _check_place(source, out)
    with _alone(out):
        if is_dataset(out):
            return _reopen(source, out)
        _begin(source, out)
        parts = _write_shards(source, out, workers)
        _finish(source, out, parts)
        shutil.rmtree(out / UNFINISHED)
    return Dataset.open(out)


def _check_place(source: Source, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"prepare: {out} is a file; give a new folder")
    if out.resolve().is_relative_to(source.root.resolve()):
        raise UsageError(
            f"prepare: {out} lies inside the source {source.root}; give a folder outside it"
        )
    ours = is_dataset(out) or (out / UNFINISHED).is_dir()
    if out.is_dir() and not ours and any(out.iterdir()):
        raise UsageError(
            f"prepare: {out} holds something other than a prepared dataset; "
            "give a new or an empty folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"prepare: cannot make {out}: {error.strerror}") from error


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Waits while another process prepares the same folder; a killed one holds nothing."""
    fd = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _reopen(source: Source, out: Path) -> Dataset:
    dataset = Dataset.open(out)
    if json.loads((out / MANIFEST).read_bytes())["source"] != _digest(source):
        raise UsageError(
            f"prepare: {out} was prepared from other files than are now in {source.root}; "
            f"give another folder, or delete {out} first"
        )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    print(f"{out} is already prepared from the files in {source.root}", file=sys.stderr)
    return dataset


def _digest(source: Source, times: bool = False) -> str:
    """Of the classes and of each image's half, label, name and size (and time of change)."""
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for half in (source.train, source.val):
        for image in sorted(half, key=lambda image: image.name):
            size, time = _stat(image.path)
            row = [image.name, image.label, size, time if times else None]
            digest.update(json.dumps(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _begin(source: Source, out: Path) -> None:
    """Notes which source this is; shards of other files, or of files since changed, go."""
    note = out / UNFINISHED / "source.json"
    root = str(source.root.resolve())
    state = {"root": root, "files": _digest(source, times=True), "shard": IMAGES_PER_SHARD}
    if note.is_file():
        found = json.loads(note.read_bytes())
        if found == state:
            return
        if found["root"] != root:
            raise UsageError(
                f"prepare: {out} holds an unfinished preparation of {found['root']}; "
                f"give another folder, or delete {out} first"
            )
        print(f"{root} has changed since {out} was begun: starting over", file=sys.stderr)
        shutil.rmtree(out / UNFINISHED)
    try:
        note.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"prepare: cannot write to {out}: {error.strerror}") from error
    _files.write(note, json.dumps(state).encode())


def _write_shards(source: Source, out: Path, workers: int | None) -> dict[str, list[Part]]:
    halves = {"train": source.train, "val": source.val}
    num_images = sum(map(len, halves.values()))
    with converter(workers, num_images) as convert, Progress("prepare", num_images) as progress:
        return {
            split: _write_split(out, split, images, convert, progress)
            for split, images in halves.items()
        }


def _write_split(
    out: Path, split: str, images: tuple[Image, ...], convert: Convert, progress: Progress
) -> list[Part]:
    shuffled = sorted(images, key=_place)
    parts: list[Part] = []
    first_id = 0
    for number, at in enumerate(range(0, len(shuffled), IMAGES_PER_SHARD)):
        members = shuffled[at : at + IMAGES_PER_SHARD]
        part = load_part(out, split, number)
        if part is None:
            part = write_shard(out, split, number, members, first_id, convert, progress.advance)
        else:
            progress.skip(len(members))
        first_id += len(part.index)
        parts.append(part)
    return parts


def _place(image: Image) -> tuple[bytes, str]:
    """Shuffles: by a hash of the name, other than the one that splits."""
    return hashlib.sha256(b"order\0" + os.fsencode(image.name)).digest(), image.name


def _finish(source: Source, out: Path, parts: dict[str, list[Part]]) -> None:
    rejected = sorted(item for half in parts.values() for part in half for item in part.rejected)
    _write_rejected(out / "rejected.csv", rejected)
    for split, half in parts.items():
        _check_images(source, out, split, half)
    files: dict[str, bytes] = {}
    for split, half in parts.items():
        files[f"{split}.npy"] = _npy(np.concatenate([part.index for part in half]))
        names = [name for part in half for name in part.names]
        files[f"{split}.names.json"] = json.dumps(names).encode()
    num_train = sum(len(part.index) for part in parts["train"])
    pixel_sum = sum((part.pixel_sum for part in parts["train"]), np.zeros((SIDE, SIDE, 3), int))
    products = sum((part.products for part in parts["train"]), np.zeros((3, 3), int))
    files["mean.npy"] = _npy((pixel_sum / num_train).astype(np.float32))
    for name, data in files.items():
        _files.write(out / name, data)
    manifest = {
        "format": "fastalex dataset",
        "version": VERSION,
        "classes": source.classes,
        "image": {"side": SIDE, "quality": QUALITY, "subsampling": SUBSAMPLING},
        **_color_statistics(pixel_sum.sum((0, 1)), products, num_train * SIDE**2),
        "shards": {
            split: [
                {"file": shard_name(split, i), "images": len(part.index), "size": part.tar_size}
                for i, part in enumerate(half)
            ]
            for split, half in parts.items()
        },
        "rejected": len(rejected),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "source": _digest(source),
    }
    _files.write(out / MANIFEST, json.dumps(manifest, indent=1).encode())


def _write_rejected(path: Path, rejected: list[tuple[str, int, str]]) -> None:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["name", "reason"])
    rows.writerows((name, reason) for name, _, reason in rejected)
    _files.write(path, text.getvalue().encode(errors="backslashreplace"))


def _check_images(source: Source, out: Path, split: str, parts: list[Part]) -> None:
    """Every class has an image to train on, and there is something to validate with."""
    labels = np.concatenate([part.index["label"] for part in parts])
    missing = sorted(set(range(len(source.classes))) - set(labels.tolist()))
    if len(labels) and (split == "val" or not missing):
        return
    what = f"class {source.classes[missing[0]]}" if len(labels) else "the set"
    raise RunError(
        f"prepare: every {split} image of {what} was refused; the reasons are in "
        f"{out / 'rejected.csv'}: mend or remove them and run again"
    )


def _color_statistics(sums: np.ndarray, products: np.ndarray, count: int) -> dict[str, list]:
    """Mean and principal axes of `count` RGB pixels, from exact integer sums."""
    s = [int(value) for value in sums]
    covariance = [
        [(count * int(products[i, j]) - s[i] * s[j]) / count**2 for j in range(3)] for i in range(3)
    ]
    eigenvalues, eigenvectors = np.linalg.eigh(np.array(covariance))
    largest = np.abs(eigenvectors).argmax(axis=0)
    eigenvectors = eigenvectors * np.sign(eigenvectors[largest, range(3)])  # either sign is one
    return {
        "channel_mean": [value / count for value in s],
        "eigenvalues": np.maximum(eigenvalues, 0.0).tolist(),
        "eigenvectors": eigenvectors.tolist(),
    }


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
