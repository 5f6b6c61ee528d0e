"""A folder -> a dataset: what is stored, what is refused, and where."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from fastalex.data import Dataset, image_folder, prepare
from fastalex.data.jpeg import convert
from fastalex.errors import RunError, UsageError

Contents = Callable[[Path], dict[str, bytes]]

pytestmark = pytest.mark.usefixtures("small_shards")


def test_files_of_a_dataset(uninterrupted: dict[str, bytes]) -> None:
    shards = [f"train-{i:05d}" for i in range(5)] + [f"val-{i:05d}" for i in range(2)]
    assert set(uninterrupted) == {
        *(f"{shard}.{end}" for shard in shards for end in ("tar", "idx")),
        *("train.npy", "val.npy", "train.names.json", "val.names.json"),
        *("mean.npy", "rejected.csv", "dataset.json"),
    }


def test_every_image_is_there_once_shuffled_with_its_label(folder: Path, dataset: Dataset) -> None:
    source = image_folder(folder)
    for split, images in ((dataset.train, source.train), (dataset.val, source.val)):
        by_name = {image.name: image for image in images}
        assert sorted(split.names) == sorted(by_name)
        for i, name in enumerate(split.names):
            assert split.labels[i] == by_name[name].label
            assert bytes(split.read(i)) == convert(by_name[name].path.read_bytes())
    assert dataset.train.names != sorted(dataset.train.names)
    assert len(set(dataset.train.labels[:8].tolist())) > 1


def test_statistics_are_those_of_the_stored_training_pixels(dataset: Dataset) -> None:
    reads = [dataset.train.read(i) for i in range(len(dataset.train))]
    pixels = np.stack([simplejpeg.decode_jpeg(data) for data in reads]).astype(np.float64)
    assert np.allclose(dataset.mean_image, pixels.mean(0), rtol=0, atol=1e-5)
    assert dataset.mean_image.dtype == np.float32
    flat = pixels.reshape(-1, 3)
    assert np.allclose(dataset.channel_mean, flat.mean(0), rtol=1e-12)
    covariance = np.cov(flat.T, bias=True)
    vectors, values = dataset.eigenvectors, dataset.eigenvalues
    assert np.allclose(covariance @ vectors, vectors * values, rtol=1e-9)
    assert np.allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert np.all(np.diff(values) > 0)


def test_refused_files_are_listed_and_the_rest_is_prepared(
    tmp_path: Path, fill: Callable[[Path, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    fill(root, 30)
    victim = root / "sky" / "002.jpg"
    victim.write_bytes(victim.read_bytes()[:-500])
    (root / "sky" / 'odd, "name"\nü.txt').write_text("no picture")
    (root / "palace" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "palace" / "zero.png").touch()
    dataset = prepare(image_folder(root), tmp_path / "out")
    with open(tmp_path / "out" / "rejected.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["name", "reason"],
        ["palace/gone.jpg", "unreadable: No such file or directory"],
        ["palace/zero.png", "empty file"],
        ["sky/002.jpg", "damaged JPEG: Premature end of JPEG file"],
        ['sky/odd, "name"\nü.txt', "not an image"],
    ]
    names = dataset.train.names + dataset.val.names
    assert (len(names), dataset.num_rejected) == (29, 4)
    assert not {row[0] for row in rows} & set(names)
    assert "33 of 33 images" in capsys.readouterr().err


def test_a_class_without_any_image_stops_it_until_mended(
    tmp_path: Path,
    fill: Callable[[Path, int], None],
    contents: Contents,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    fill(root, 12)
    sound = {path: path.read_bytes() for path in (root / "sky").iterdir()}
    for path in sound:
        path.write_text("no picture")
    with pytest.raises(RunError, match=r"every train image of class sky was .*rejected\.csv"):
        prepare(image_folder(root), out)
    assert (out / "rejected.csv").read_text().count("not an image") == 4
    for path, data in sound.items():
        path.write_bytes(data)
    for path in list((root / "palace").iterdir())[2:] + list((root / "flower").iterdir())[2:]:
        path.unlink()
    prepare(image_folder(root), out)
    assert "has changed since" in capsys.readouterr().err
    prepare(image_folder(root), tmp_path / "anew")
    assert contents(out) == contents(tmp_path / "anew")


def test_no_sound_image_at_all(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    with pytest.raises(RunError, match="every train image of the set was refused"):
        prepare(image_folder(tmp_path / "in"), tmp_path / "out")


def test_no_sound_validation_image(tmp_path: Path, fill: Callable[[Path, int], None]) -> None:
    fill(tmp_path / "in" / "train", 6)
    (tmp_path / "in" / "val" / "sky").mkdir(parents=True)
    (tmp_path / "in" / "val" / "sky" / "1.jpg").write_text("x")
    with pytest.raises(RunError, match="every val image of the set was refused"):
        prepare(image_folder(tmp_path / "in"), tmp_path / "out")


def test_prepared_again_says_so_and_returns(
    folder: Path, tmp_path: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(image_folder(folder), tmp_path / "out")
    before = contents(tmp_path / "out")
    capsys.readouterr()
    assert prepare(image_folder(folder), tmp_path / "out").fingerprint == first.fingerprint
    assert contents(tmp_path / "out") == before
    assert "is already prepared from files of these names and sizes" in capsys.readouterr().err


def test_another_source_is_refused(
    folder: Path, tmp_path: Path, fill: Callable[[Path, int], None]
) -> None:
    fill(tmp_path / "other", 12)
    prepare(image_folder(folder), tmp_path / "out")
    with pytest.raises(UsageError, match=r"was prepared from other files than are now in .*/other"):
        prepare(image_folder(tmp_path / "other"), tmp_path / "out")
    unfinished = tmp_path / "begun" / ".unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "source.json").write_text(json.dumps({"root": "/elsewhere"}))
    with pytest.raises(UsageError, match="holds an unfinished preparation of /elsewhere"):
        prepare(image_folder(folder), tmp_path / "begun")


def test_places_that_will_not_do(
    folder: Path, tmp_path: Path, fill: Callable[[Path, int], None]
) -> None:
    source = image_folder(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds something other than a prepared dataset"):
        prepare(source, tmp_path / "full")
    with pytest.raises(UsageError, match=r"thesis\.txt is a file; give a new folder"):
        prepare(source, tmp_path / "full" / "thesis.txt")
    with pytest.raises(UsageError, match="lies inside the source"):
        prepare(source, folder / "out")
    with pytest.raises(RunError, match=r"cannot make .*: Not a directory"):
        prepare(source, tmp_path / "full" / "thesis.txt" / "out")
    with pytest.raises(UsageError, match="`workers` must be 1 or more, not 0"):
        prepare(source, tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_fingerprint_tells_contents_apart(
    dataset: Dataset, folder: Path, tmp_path: Path, fill: Callable[[Path, int], None]
) -> None:
    fill(tmp_path / "other" / "train", 12)
    fill(tmp_path / "other" / "val", 6)
    other = prepare(image_folder(tmp_path / "other"), tmp_path / "out")
    assert other.fingerprint != dataset.fingerprint
    text = (dataset.root / "dataset.json").read_bytes()
    assert dataset.fingerprint == hashlib.sha256(text).hexdigest()
