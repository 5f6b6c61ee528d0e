"""Files that are written whole or not at all, for whatever a later run will read; and the cache."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastalex.errors import RunError

RETRY = "make room or choose another folder and run the same command again: what is done is kept"


def cache_dir() -> Path:
    """Where fastalex keeps what it can make again: $FASTALEX_CACHE, else below the user's cache."""
    if given := os.environ.get("FASTALEX_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastalex"


@contextlib.contextmanager
def whole(path: Path, advice: str = RETRY) -> Iterator[BinaryIO]:
    """Opens `path` for writing; it appears, synced to the disk, when the block ends well.

    A reader, or a kill, finds what stood there before or the new file, never a part of it.

    Raises:
        RunError: the file cannot be written (an OSError in the block); gives reason and `advice`.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()  # gives the space back
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise RunError(f"{path} cannot be written ({reason}); {advice}") from error


def write(path: Path, data: bytes | memoryview, advice: str = RETRY) -> None:
    """`whole` for bytes at hand."""
    with whole(path, advice) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
