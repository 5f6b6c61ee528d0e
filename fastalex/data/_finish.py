"""The files of a prepared dataset that need all its shards; the manifest comes last.

For `fastalex.data.prepare`.
"""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np

from fastalex import files
from fastalex.data._shard_writer import Part
from fastalex.data.jpeg import QUALITY, SUBSAMPLING
from fastalex.data.shards import MANIFEST, VERSION, shard_name
from fastalex.errors import RunError
from fastalex.inputs import STORED_SIDE as SIDE


def finish(classes: tuple[str, ...], out: Path, parts: dict[str, list[Part]], source: str) -> None:
    """Writes what is known once all shards are; `source` is a digest, kept in the manifest.

    Raises:
        RunError: no training image of a class, or no validation image at all, was stored.
    """
    rejected = sorted(item for half in parts.values() for part in half for item in part.rejected)
    _write_rejected(out / "rejected.csv", rejected)
    for split, half in parts.items():
        _check_images(classes, out, split, half)
    contents: dict[str, bytes] = {}
    for split, half in parts.items():
        contents[f"{split}.npy"] = _npy(np.concatenate([part.index for part in half]))
        names = [name for part in half for name in part.names]
        contents[f"{split}.names.json"] = json.dumps(names).encode()
    num_train = sum(len(part.index) for part in parts["train"])
    pixel_sum = sum((part.pixel_sum for part in parts["train"]), np.zeros((SIDE, SIDE, 3), int))
    products = sum((part.products for part in parts["train"]), np.zeros((3, 3), int))
    contents["mean.npy"] = _npy((pixel_sum / num_train).astype(np.float32))
    for name, data in contents.items():
        files.write(out / name, data)
    manifest = {
        "format": "fastalex dataset",
        "version": VERSION,
        "classes": classes,
        "image": {"side": SIDE, "quality": QUALITY, "subsampling": SUBSAMPLING},
        **_color_statistics(pixel_sum.sum((0, 1)), products, num_train * SIDE**2),
        "shards": {
            split: [
                {"file": shard_name(split, i), "images": len(part.index), "size": part.tar_size}
                for i, part in enumerate(half)
            ]
            for split, half in parts.items()
        },
        "rejected": len(rejected),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        "source": source,
    }
    files.write(out / MANIFEST, json.dumps(manifest, indent=1).encode())


def _write_rejected(path: Path, rejected: list[tuple[str, int, str]]) -> None:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["name", "reason"])
    rows.writerows((name, reason) for name, _, reason in rejected)
    files.write(path, text.getvalue().encode(errors="backslashreplace"))


def _check_images(classes: tuple[str, ...], out: Path, split: str, parts: list[Part]) -> None:
    """Every class has an image to train on, and there is something to validate with."""
    labels = np.concatenate([part.index["label"] for part in parts])
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    if len(labels) and (split == "val" or not missing):
        return
    what = f"class {classes[missing[0]]}" if len(labels) else "the set"
    raise RunError(
        f"prepare: every {split} image of {what} was refused; the reasons are in "
        f"{out / 'rejected.csv'}: mend or remove them and run again"
    )


def _color_statistics(sums: np.ndarray, products: np.ndarray, count: int) -> dict[str, list]:
    """Mean and principal axes of `count` RGB pixels, from exact integer sums."""
    s = [int(value) for value in sums]
    covariance = [
        [(count * int(products[i, j]) - s[i] * s[j]) / count**2 for j in range(3)] for i in range(3)
    ]
    eigenvalues, eigenvectors = np.linalg.eigh(np.array(covariance))
    largest = np.abs(eigenvectors).argmax(axis=0)
    eigenvectors = eigenvectors * np.sign(eigenvectors[largest, range(3)])  # either sign is one
    return {
        "channel_mean": [value / count for value in s],
        "eigenvalues": np.maximum(eigenvalues, 0.0).tolist(),
        "eigenvectors": eigenvectors.tolist(),
    }


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
