"""Real pictures: crops of scikit-learn's two sample photographs, and a dataset prepared of them."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from fastalex.data import Dataset, image_folder, prepare

CLASSES = ("flower", "palace", "sky")


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Two (427, 640, 3) uint8 photographs."""
    return load_sample_images().images


@pytest.fixture(scope="session")
def fill(photos: list[np.ndarray]) -> Callable[[Path, int], None]:
    """`fill(folder, count)` writes `count` JPEGs of all shapes and classes below `folder`."""

    def write(folder: Path, count: int) -> None:
        rng = np.random.default_rng(len(str(folder.name)))
        for i in range(count):
            height, width = rng.integers(90, 420, 2)
            top, left = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
            crop = photos[i % 2][top : top + height, left : left + width]
            place = folder / CLASSES[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(place / f"{i:03d}.jpg", quality=95)

    return write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, fill: Callable[[Path, int], None]) -> Path:
    """train/ and val/ of three classes: 40 and 11 images. Not to be changed."""
    root = tmp_path_factory.mktemp("photos")
    fill(root / "train", 40)
    fill(root / "val", 11)
    return root


@pytest.fixture(scope="session")
def dataset(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """`folder`, prepared. Not to be changed."""
    return prepare(image_folder(folder), tmp_path_factory.mktemp("prepared") / "photos")


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """`contents(folder)`: name and bytes of every file below it."""

    def read(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight images a shard."""
    monkeypatch.setattr(sys.modules["fastalex.data.prepare"], "IMAGES_PER_SHARD", 8)


@pytest.fixture(scope="session")
def uninterrupted(
    folder: Path,
    contents: Callable[[Path], dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The files of `folder` prepared in one go by one worker, eight images a shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fastalex.data.prepare"], "IMAGES_PER_SHARD", 8)
        out = tmp_path_factory.mktemp("whole") / "out"
        prepare(image_folder(folder), out, workers=1)
    return contents(out)
