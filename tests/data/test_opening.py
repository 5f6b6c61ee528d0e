"""`open_dataset`: prepared folders, image folders, and what is neither."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastalex.data import Dataset, demo_dataset, open_dataset
from fastalex.errors import UsageError


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTALEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_prepared_folder_is_opened(dataset: Dataset, own_cache: Path) -> None:
    assert open_dataset(dataset.root).fingerprint == dataset.fingerprint
    assert not own_cache.exists()


def test_an_image_folder_is_prepared_once_into_the_cache(
    folder: Path, dataset: Dataset, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_dataset(folder)
    assert opened.fingerprint == dataset.fingerprint
    assert opened.root.is_relative_to(own_cache)
    assert (
        f"preparing the 51 images of {folder} once, into {opened.root}" in capsys.readouterr().out
    )
    changed = (opened.root / "dataset.json").stat().st_mtime_ns
    assert open_dataset(folder).root == opened.root
    assert (opened.root / "dataset.json").stat().st_mtime_ns == changed
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("own_cache")
def test_a_changed_folder_is_prepared_again(
    tmp_path: Path, fill: Callable[[Path, int], None]
) -> None:
    fill(tmp_path / "in", 12)
    first = open_dataset(tmp_path / "in")
    image = tmp_path / "in" / "sky" / "002.jpg"
    os.utime(image, ns=(1, 1))
    touched = open_dataset(tmp_path / "in")
    shutil.copy(image, image.with_name("more.jpg"))
    assert len({d.root for d in (first, touched, open_dataset(tmp_path / "in"))}) == 3


def test_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    demo = demo_dataset()
    assert demo.classes == tuple("0123456789")
    assert (len(demo.train), len(demo.val), demo.num_rejected) == (1498, 299, 0)
    capsys.readouterr()
    assert demo_dataset().fingerprint == demo.fingerprint
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("own_cache")
def test_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such does not exist"):
        open_dataset(tmp_path / "no-such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is empty"):
        open_dataset(tmp_path / "empty")
    (tmp_path / "begun" / ".unfinished").mkdir(parents=True)
    with pytest.raises(UsageError, match="did not finish"):
        open_dataset(tmp_path / "begun")
