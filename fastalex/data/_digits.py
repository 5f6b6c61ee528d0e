"""The built-in pictures: scikit-learn's handwritten digits, written as JPEG files once.

For `fastalex.data.digits` and the demo.
"""

import shutil
import tempfile
from pathlib import Path

from fastalex.errors import RunError
from fastalex.files import cache_dir
from fastalex.inputs import STORED_SIDE

_DIGITS_VERSION = 1
"""Part of the folder's name; a change of the pictures needs a new one."""


def digits(cache: Path | None = None) -> Path:
    """Writes scikit-learn's digits once; returns the folder, with train/0..9 and val/0..9.

    Source: `sklearn.datasets.load_digits`, the test set of UCI's "Optical Recognition of
    Handwritten Digits", 8 x 8 grey images of 0..16; nothing is downloaded. Digit i of its order is
    a val image where i % 6 == 5: 1,498 train, 299 val images. They become grey 256 x 256 JPEGs,
    0..16 scaled to 0..255 and enlarged with a bicubic filter. The folder appears whole or not at
    all.
    """
    folder = (cache or cache_dir()) / f"digits-v{_DIGITS_VERSION}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise _no_room(folder, error) from error
    try:
        _write_digits(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same files
                raise
    except OSError as error:
        raise _no_room(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _no_room(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"the built-in digits cannot be written to {folder} ({error.strerror or error}); "
        "make room, or set FASTALEX_CACHE to another folder"
    )


def _write_digits(folder: Path) -> None:
    import numpy as np
    from PIL import Image as Pillow
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for index, (pixels, label) in enumerate(zip(grey, labels, strict=True)):
        place = folder / ("val" if index % 6 == 5 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = Pillow.fromarray(pixels).resize(
            (STORED_SIDE, STORED_SIDE), Pillow.Resampling.BICUBIC
        )
        image.save(place / f"{index:04d}.jpg", quality=90)
