"""A path somebody gave -> an open dataset, prepared on the way if it holds plain pictures."""

import hashlib
import json
import os
from pathlib import Path

from fastalex.data._digits import digits
from fastalex.data.prepare import prepare
from fastalex.data.shards import UNFINISHED, Dataset, is_dataset
from fastalex.data.sources import Source, image_folder
from fastalex.files import cache_dir


def open_dataset(path: Path) -> Dataset:
    """Opens a prepared dataset, or prepares a folder of images into the user's cache first.

    A folder is prepared again when a file's name, size or time of change is another.

    Raises:
        UsageError: `path` is neither.
        RunError: the dataset is damaged, or the preparation failed.
    """
    path = Path(path).expanduser()
    if is_dataset(path) or (path / UNFINISHED).is_dir():
        return Dataset.open(path)
    source = image_folder(path)
    out = cache_dir() / "prepared" / f"{path.resolve().name}-{_key(source)}"
    if is_dataset(out):
        return Dataset.open(out)
    count = len(source.train) + len(source.val)
    print(f"preparing the {count} images of {path} once, into {out}", flush=True)
    return prepare(source, out)


def demo_dataset() -> Dataset:
    """scikit-learn's digits, prepared in the user's cache: 1,498 train, 299 val images."""
    return open_dataset(digits())


def _key(source: Source) -> str:
    digest = hashlib.sha256(os.fsencode(source.root.resolve()))
    for half in (source.train, source.val):
        for image in half:
            try:
                stat = image.path.stat()
                facts = stat.st_size, stat.st_mtime_ns
            except OSError:
                facts = None
            digest.update(json.dumps([image.name, facts]).encode())
    return digest.hexdigest()[:16]
