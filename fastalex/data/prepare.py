"""Any source -> a prepared dataset on disk: shards, indices, mean image, colour PCA, rejects.

Called by `fastalex-prepare` and `fastalex.data.open_dataset`. The same source gives the same bytes,
however many workers there are and in whatever order the system lists files. A run that was killed
goes on at the first unfinished shard; dataset.json is written last, so an unfinished dataset does
not open. The format is written out in docs/data.md.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastalex import files
from fastalex.data._finish import finish
from fastalex.data._progress import Progress
from fastalex.data._shard_writer import Part, load_part, write_shard
from fastalex.data._workers import Convert, converter
from fastalex.data.shards import MANIFEST, UNFINISHED, Dataset, is_dataset
from fastalex.data.sources import Image, Source
from fastalex.errors import RunError, UsageError

IMAGES_PER_SHARD = 40_000
"""About 1 GB at the 25 kB of a stored photograph."""


def prepare(source: Source, out: Path, *, workers: int | None = None) -> Dataset:
    """Writes `source` to the folder `out`, once, and opens it.

    Args:
        source: see `fastalex.data.image_folder`.
        out: a folder that does not exist, is empty, or holds this source prepared or half prepared.
        workers: processes; None takes every core this process may use (for fewer than 2,000
            images just this process, which is quicker), 1 works in this process.

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
        finish(source.classes, out, parts, _digest(source))
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
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that is preparing {out}", file=sys.stderr)
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
    print(
        f"{out} is already prepared from files of these names and sizes in {source.root}",
        file=sys.stderr,
    )
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
        for pattern in ("*.tar", "*.idx", ".*.tmp"):
            for path in out.glob(pattern):
                path.unlink()
        shutil.rmtree(out / UNFINISHED)
    try:
        note.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"prepare: cannot write to {out}: {error.strerror}") from error
    files.write(note, json.dumps(state).encode())


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
