"""Files that are written whole or not at all. For `fastalex.data.prepare`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastalex.errors import RunError


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Opens `path` for writing; it appears, synced to the disk, when the block ends well.

    Raises:
        RunError: the file cannot be written.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)  # gives the space back
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder "
            "and run the same command again: finished shards are kept"
        ) from error


def write(path: Path, data: bytes) -> None:
    with whole(path) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
