"""The built-in data set: scikit-learn's 1,797 handwritten digits as a folder of real JPEGs.

Source: `sklearn.datasets.load_digits`, the test set of UCI's "Optical Recognition of Handwritten
Digits": 8 x 8 grey images of 0..16. Used by demos and tests; nothing is downloaded.
"""

import os
import shutil
import tempfile
from pathlib import Path

SIDE = 256
VERSION = 1
"""Part of the folder's name; a change of the pictures needs a new one."""


def cache_dir() -> Path:
    """Where fastalex keeps what it can make again: $FASTALEX_CACHE, else below the user's cache."""
    if given := os.environ.get("FASTALEX_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastalex"


def digits(cache: Path | None = None) -> Path:
    """Writes the digits once and returns the folder, with train/0 .. train/9 and val/0 .. val/9.

    Digit i of scikit-learn's order is a val image where i % 6 == 5: 1,498 train, 299 val images.
    Grey 256 x 256 JPEGs, 0..16 scaled to 0..255 and enlarged with a bicubic filter. The folder
    appears whole or not at all.
    """
    folder = (cache or cache_dir()) / f"digits-v{VERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        _write(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same files
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for index, (pixels, label) in enumerate(zip(grey, labels, strict=True)):
        place = folder / ("val" if index % 6 == 5 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(place / f"{index:04d}.jpg", quality=90)
