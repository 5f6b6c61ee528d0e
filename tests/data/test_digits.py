"""The built-in digits: real JPEGs, written once."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fastalex.data._digits import digits
from fastalex.data.sources import image_folder
from fastalex.errors import RunError
from fastalex.files import cache_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("cache"))


def test_every_sixth_is_for_validation(folder: Path) -> None:
    source = image_folder(folder)
    assert source.classes == tuple("0123456789")
    assert (len(source.train), len(source.val)) == (1498, 299)
    targets = load_digits(return_X_y=True)[1]
    for half, is_val in ((source.train, False), (source.val, True)):
        for image in half:
            index = int(image.path.stem)
            assert (index % 6 == 5) == is_val
            assert targets[index] == image.label


def test_pictures_are_the_digits(folder: Path) -> None:
    pixels = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    for index in (0, 1, 1000):
        (path,) = folder.glob(f"*/*/{index:04d}.jpg")
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (256, 256))
            small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float)
        assert np.abs(small - pixels[index] * 255 / 16).mean() < 15
        assert np.corrcoef(small.ravel(), pixels[index].ravel())[0, 1] > 0.98


def test_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        (folder / "train").mkdir()
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("fastalex.data._digits._write_digits", fail)
        with pytest.raises(RunError, match="disk full"):
            digits(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "digits-v1").mkdir()
    monkeypatch.setattr("fastalex.data._digits._write_digits", fail)
    assert digits(tmp_path) == tmp_path / "digits-v1"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTALEX_CACHE": "/f", "XDG_CACHE_HOME": "/x"}, "/f"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/fastalex"),
        ({"HOME": "/h"}, "/h/.cache/fastalex"),
    ],
)
def test_place_of_the_cache(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FASTALEX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_a_full_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastalex.data._digits._write_digits", full)
    with pytest.raises(RunError, match=r"digits cannot be written to .*No space.*FASTALEX_CACHE"):
        digits(tmp_path)
    assert not list(tmp_path.iterdir())
