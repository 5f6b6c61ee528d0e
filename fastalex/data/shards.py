"""The prepared dataset on disk: opening, checks, reads. The format is written out in docs/data.md.

Written by `fastalex.data.prepare`, read by the pipeline and by anyone who wants an image by its id.
Needs NumPy only.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from fastalex.errors import RunError, UsageError

VERSION = 1
MANIFEST = "dataset.json"
UNFINISHED = ".unfinished"
"""Folder inside a dataset that is still being prepared."""

INDEX = np.dtype(
    [("offset", "<u8"), ("size", "<u4"), ("shard", "<u4"), ("label", "<u4"), ("crc32", "<u4")]
)
"""A row of train.npy or val.npy: where image number i of the split is."""


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.tar"


class Split:
    """The training or the validation images of a dataset, numbered 0 .. n - 1."""

    def __init__(self, root: Path, name: str, index: np.ndarray) -> None:
        self.root = root
        self.name = name
        self.labels = index["label"].astype(np.int64)
        """(n,) int64."""
        self._index = index
        self._maps: dict[int, np.memmap] = {}

    def __len__(self) -> int:
        return len(self._index)

    def read(self, image_id: int) -> np.ndarray:
        """The JPEG of one image: a read-only (bytes,) uint8 view of its shard.

        Raises:
            RunError: the bytes are not those that were written.
        """
        row = self._index[image_id]
        start, size = int(row["offset"]), int(row["size"])
        data = self._map(int(row["shard"]))[start : start + size]
        if zlib.crc32(data.data) != row["crc32"]:
            raise RunError(
                f"{self.where(image_id)}: the bytes are not those that were written (CRC-32); "
                f"copy the shard again, or delete {self.root} and run fastalex-prepare again"
            )
        return data

    def where(self, image_id: int) -> str:
        """For messages: the image's name in its source and the shard that holds it."""
        shard = shard_name(self.name, int(self._index["shard"][image_id]))
        return f"image {self.names[image_id]} in shard {self.root / shard}"

    @cached_property
    def names(self) -> list[str]:
        """Path of each image below the root of the source it was prepared from."""
        return json.loads((self.root / f"{self.name}.names.json").read_bytes())

    def _map(self, shard: int) -> np.memmap:
        if shard not in self._maps:
            path = self.root / shard_name(self.name, shard)
            try:
                self._maps[shard] = np.memmap(path, np.uint8, "r")
            except OSError as error:
                raise RunError(
                    f"{path} cannot be read: {error.strerror}; "
                    f"copy the shard again, or delete {self.root} and run fastalex-prepare again"
                ) from error
        return self._maps[shard]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A prepared dataset, opened with `Dataset.open`."""

    root: Path
    classes: tuple[str, ...]
    mean_image: np.ndarray = field(repr=False)
    """(256, 256, 3) float32, RGB, 0..255: the mean of the training images."""
    channel_mean: np.ndarray = field(repr=False)
    """(3,) float64, RGB, 0..255."""
    eigenvalues: np.ndarray = field(repr=False)
    """(3,) float64, rising: of the covariance of the RGB values of all training pixels."""
    eigenvectors: np.ndarray = field(repr=False)
    """(3, 3) float64: eigenvector i, in RGB, is column i."""
    fingerprint: str
    """SHA-256 of the manifest, which has a digest of all that defines the content."""
    num_rejected: int
    """Files of the source that could not be stored; rejected.csv says why."""
    train: Split = field(repr=False)
    val: Split = field(repr=False)

    @classmethod
    def open(cls, root: Path) -> "Dataset":
        """Opens a folder that fastalex-prepare wrote; checks all but the images' own bytes.

        Raises:
            UsageError: `root` is not a prepared dataset, or one whose preparation did not finish.
            RunError: a file is missing or is not as it was written.
        """
        root = Path(root)
        text = _read_manifest(root)
        manifest = _parse_manifest(root, text)
        for name, digest in manifest["files"].items():
            if hashlib.sha256(_read(root, name)).hexdigest() != digest:
                raise _altered(root / name, "is not as it was written (SHA-256)")
        return cls(
            root=root,
            classes=tuple(manifest["classes"]),
            mean_image=np.load(root / "mean.npy"),
            channel_mean=np.array(manifest["channel_mean"]),
            eigenvalues=np.array(manifest["eigenvalues"]),
            eigenvectors=np.array(manifest["eigenvectors"]),
            fingerprint=hashlib.sha256(text).hexdigest(),
            num_rejected=manifest["rejected"],
            train=_open_split(root, "train", manifest),
            val=_open_split(root, "val", manifest),
        )


def is_dataset(root: Path) -> bool:
    """Whether `root` holds a finished dataset, sound or not."""
    return (root / MANIFEST).is_file()


def _read_manifest(root: Path) -> bytes:
    if is_dataset(root):
        return (root / MANIFEST).read_bytes()
    if (root / UNFINISHED).is_dir():
        raise UsageError(
            f"dataset: the preparation of {root} did not finish; run the same fastalex-prepare "
            "again, it goes on where it stopped"
        )
    raise UsageError(
        f"dataset: {root} is not a prepared dataset (no {MANIFEST}); run fastalex-prepare "
        "SOURCE OUT and give OUT"
    )


def _parse_manifest(root: Path, text: bytes) -> dict:
    try:
        manifest = json.loads(text)
        version = manifest["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise _altered(root / MANIFEST, f"cannot be read ({error})") from error
    if version != VERSION:
        raise RunError(
            f"dataset: {root} has format version {version}, this fastalex reads {VERSION}; "
            "run fastalex-prepare again into another folder"
        )
    return manifest


def _open_split(root: Path, name: str, manifest: dict) -> Split:
    for shard in manifest["shards"][name]:
        path, size = root / shard["file"], shard["size"]
        if not path.is_file():
            raise _altered(path, "is missing")
        if (found := path.stat().st_size) != size:
            raise _altered(path, f"has {found} bytes, not the {size} that were written")
    return Split(root, name, np.load(root / f"{name}.npy"))


def _read(root: Path, name: str) -> bytes:
    try:
        return (root / name).read_bytes()
    except FileNotFoundError:
        raise _altered(root / name, "is missing") from None


def _altered(path: Path, how: str) -> RunError:
    return RunError(
        f"dataset: {path} {how}; copy it again from where it was prepared, or delete "
        f"{path.parent} and run fastalex-prepare again"
    )
