"""Files that are whole or absent."""

import errno
import os
from pathlib import Path

import pytest

from fastalex import files
from fastalex.errors import RunError


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")
    with files.whole(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError("No space left")]
)
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fill() -> None:
        with files.whole(path, "do this") as file:
            file.write(b"half")
            raise error

    with pytest.raises(RunError, match=r"file cannot be written \(No space left.*\); do this"):
        fill()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_people_may_read_what_was_written(tmp_path: Path):
    files.write(tmp_path / "file", b"data")
    assert (tmp_path / "file").stat().st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
