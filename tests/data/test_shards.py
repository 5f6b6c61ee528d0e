"""Opening and reading a prepared dataset; what is said of a damaged one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastalex.data import Dataset
from fastalex.errors import RunError, UsageError


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


def test_reads_are_views_of_whole_jpegs(dataset: Dataset) -> None:
    data = dataset.train.read(0)
    assert data.dtype == np.uint8
    assert not data.flags.writeable
    assert bytes(data[:2]) == b"\xff\xd8"
    assert bytes(data[-2:]) == b"\xff\xd9"
    assert (len(dataset.train), len(dataset.val)) == (40, 11)
    assert dataset.train.labels.dtype == np.int64
    assert dataset.classes == ("flower", "palace", "sky")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def edit_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-00000.tar", Path.unlink, "train-00000.tar is missing; .*fastalex-prepare again"),
        ("val-00000.tar", truncate, "val-00000.tar has .* bytes, not the .*fastalex-prepare again"),
        ("train.npy", Path.unlink, "train.npy is missing"),
        ("train.npy", truncate, r"train.npy is not as it was written \(SHA-256\)"),
        ("mean.npy", truncate, "mean.npy is not as it was written"),
        ("val.names.json", truncate, "val.names.json is not as it was written"),
        ("dataset.json", truncate, "dataset.json cannot be read"),
        ("dataset.json", edit_version, "has format version 2, this fastalex reads 1"),
    ],
)
def test_damaged_files(
    copy: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy / name)
    with pytest.raises(RunError, match=message) as caught:
        Dataset.open(copy)
    assert "\n" not in str(caught.value)


def test_an_altered_shard_is_named_with_its_image(copy: Path) -> None:
    dataset = Dataset.open(copy)
    dataset.train.read(7)
    alter(copy, "train", 7)
    dataset = Dataset.open(copy)
    with pytest.raises(
        RunError, match=r"image train/.*\.jpg in shard .*train-00000\.tar"
    ) as caught:
        dataset.train.read(7)
    assert dataset.train.names[7] in str(caught.value)
    dataset.train.read(6)  # its neighbour is as sound as before


def alter(root: Path, split: str, image_id: int) -> None:
    """Flips one bit in the middle of an image."""
    row = np.load(root / f"{split}.npy")[image_id]
    with open(root / f"{split}-{row['shard']:05d}.tar", "r+b") as shard:
        shard.seek(int(row["offset"]) + int(row["size"]) // 2)
        (byte,) = shard.read(1)
        shard.seek(-1, 1)
        shard.write(bytes([byte ^ 1]))


def test_what_is_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a prepared dataset"):
        Dataset.open(tmp_path)
    (tmp_path / ".unfinished").mkdir()
    with pytest.raises(UsageError, match="did not finish"):
        Dataset.open(tmp_path)
