"""Shared fixtures: a cache of the tests' own, and a small folder of pictures, raw and prepared."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on CPU tensors; read when they are defined


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache is never touched."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["FASTALEX_CACHE"] = str(path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of three classes of coloured stripes: 16 and 4 JPEGs of each."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for half, count in (("train", 16), ("val", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = root / half / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 90, (256, 256, 3))
                image[:, :: 2 + i % 3, 2 - label] += 120
                Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:02}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def prepared(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures`, prepared."""
    from fastalex.data import image_folder, prepare

    out = tmp_path_factory.mktemp("prepared") / "dataset"
    prepare(image_folder(pictures), out, workers=1)
    return out
