"""Which images a folder gives, how it is split, and what is said of a folder that will not do."""

import os
import shutil
from pathlib import Path

import pytest

from fastalex.data import image_folder
from fastalex.errors import UsageError


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"?")
    return root


def test_train_and_val_folders_are_used_as_they_are(tmp_path: Path) -> None:
    plant(tmp_path, "train/b/2.jpg", "train/a/1.jpg", "train/a/deep/0.png", "val/b/3.jpg")
    source = image_folder(tmp_path)
    assert source.classes == ("a", "b")
    assert [(i.name, i.label) for i in source.train] == [
        ("train/a/1.jpg", 0),
        ("train/a/deep/0.png", 0),
        ("train/b/2.jpg", 1),
    ]
    assert [(i.name, i.label) for i in source.val] == [("val/b/3.jpg", 1)]
    assert all(image.path == tmp_path / image.name for image in source.train)


def test_hidden_files_and_stray_files_are_left_out(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")
    plant(tmp_path, "a/.DS_Store", ".cache/x/5.jpg", "README.txt")
    source = image_folder(tmp_path)
    names = {image.name for image in source.train + source.val}
    assert names == {"a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"}


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    plant(tmp_path / "root", "a/1.jpg", "a/2.jpg")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "again").symlink_to(tmp_path / "root" / "a")
    source = image_folder(tmp_path / "root")
    assert len(source.train) + len(source.val) == 4


def test_split_is_a_tenth_stratified_and_has_no_image_twice(tmp_path: Path) -> None:
    plant(tmp_path, *(f"many/{i}.jpg" for i in range(1000)))
    plant(tmp_path, "two/0.jpg", "two/1.jpg", "one/0.jpg")
    source = image_folder(tmp_path)
    train, val = ({i.name for i in half} for half in (source.train, source.val))
    assert not train & val
    assert len(train | val) == 1003
    assert 70 <= sum(name.startswith("many") for name in val) <= 130
    assert sum(name.startswith("two") for name in val) == 1
    assert "one/0.jpg" in train


def test_split_does_not_depend_on_the_order_of_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, *(f"{c}/{i}.jpg" for c in "ab" for i in range(50)))
    there = image_folder(tmp_path)
    walk, listdir = os.walk, os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: ((h, d[::-1], f[::-1]) for h, d, f in walk(*a, **k))
    )
    assert image_folder(tmp_path) == there


def test_adding_images_moves_none_of_the_others(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{c}/{i}.jpg" for c in "ab" for i in range(100)))
    before = {image.name for image in image_folder(tmp_path).val}
    plant(tmp_path, *(f"{c}/more-{i}.jpg" for c in "ab" for i in range(100)))
    after = {image.name for image in image_folder(tmp_path).val if "more" not in image.name}
    assert after == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "is empty; expected .*/CLASS/image.jpg"),
        (("1.jpg", "2.jpg"), "holds files but no class folders; expected .*/train/CLASS/image.jpg"),
        (("a/1.jpg", "a/2.jpg"), r"one class folder only \(a\)"),
        (("a/1.jpg", "b/2.jpg"), "leaves no image for validation"),
        (
            ("train/a/1.jpg", "train/b/1.jpg"),
            "has train/ but no val/; add .*/val, or give .*/train",
        ),
        (("val/a/1.jpg", "val/b/1.jpg"), "has val/ but no train/"),
        (("train/a/1", "train/b/1", "val/c/1"), r"val has classes that .*train has not \(c\)"),
        (("train/a/1", "train/b/1", "val/1.jpg"), "val holds files but no class folders"),
        (("train/1.jpg", "val/a/1.jpg"), "train holds files but no class folders"),
        (("a/1.jpg", "b/.hidden"), "class folder .*/b holds no file"),
    ],
)
def test_folders_that_will_not_do(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        image_folder(plant(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no/such does not exist"):
        image_folder(tmp_path / "no" / "such")
    plant(tmp_path, "a.zip")
    with pytest.raises(UsageError, match=r"a\.zip is a file; give the folder"):
        image_folder(tmp_path / "a.zip")
    shutil.rmtree(tmp_path)


def test_a_link_back_into_the_source_brings_nothing_in_twice(tmp_path: Path) -> None:
    for name in ("ape", "bee"):
        for i in range(3):
            path = tmp_path / "source" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.jpg").write_bytes(b"x")
    (tmp_path / "source" / "ape" / "loop").symlink_to("..")
    (tmp_path / "source" / "ape" / "sibling").symlink_to("../bee")
    (tmp_path / "source" / "ape" / "outside").symlink_to(elsewhere)
    source = image_folder(tmp_path / "source")
    names = [image.name for image in (*source.train, *source.val)]
    assert sorted(names) == [
        "ape/0.jpg", "ape/1.jpg", "ape/2.jpg", "ape/outside/far.jpg",
        "bee/0.jpg", "bee/1.jpg", "bee/2.jpg",
    ]  # fmt: skip
