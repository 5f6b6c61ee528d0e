"""A folder -> a dataset: what is stored, the same bytes always, kills, full disks, refusals."""

import csv
import fcntl
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from fastalex.data import Dataset, image_folder, prepare
from fastalex.data.jpeg import convert
from fastalex.errors import RunError, UsageError

MODULE = sys.modules["fastalex.data.prepare"]  # the package's attribute is the function
ROOT = Path(__file__).parents[2]
SHARD = 8


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "IMAGES_PER_SHARD", SHARD)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "IMAGES_PER_SHARD", SHARD)
        out = tmp_path_factory.mktemp("whole") / "out"
        prepare(image_folder(folder), out, workers=1)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


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


def test_more_workers_and_another_order_of_listing_give_the_same_bytes(
    folder: Path,
    tmp_path: Path,
    uninterrupted: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: ((h, d[::-1], f[::-1]) for h, d, f in walk(*a, **k))
    )
    prepare(image_folder(folder), tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == uninterrupted


KILLED = """
import os, shutil, signal, sys
from fastalex.data import image_folder, prepare
import multiprocessing

module = sys.modules["fastalex.data.prepare"]
module.IMAGES_PER_SHARD = 8
source, out, workers, calls_left, pids = *sys.argv[1:3], *map(int, sys.argv[3:5]), sys.argv[5]

def die():
    with open(pids, "w") as file:
        file.write(" ".join(str(child.pid) for child in multiprocessing.active_children()))
    os.kill(os.getpid(), signal.SIGKILL)

def replace(*args, replace=os.replace):
    global calls_left
    calls_left -= 1
    if calls_left < 0:
        die()
    replace(*args)

if __name__ == "__main__":
    os.replace = replace
    shutil.rmtree = lambda *args, **kwargs: die()
    prepare(image_folder(source), out, workers=workers)
"""
ALL_RENAMES = 1 + 3 * 7 + 1 + 5 + 1


@pytest.mark.parametrize(
    ("renames", "workers"),
    [(8, 2), (ALL_RENAMES - 1, 1), (ALL_RENAMES, 1)],
    ids=["in a shard", "before the manifest", "after the manifest"],
)
def test_a_killed_run_does_not_open_and_goes_on_to_the_same_bytes(
    folder: Path,
    tmp_path: Path,
    uninterrupted: dict[str, bytes],
    renames: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, out, pids = tmp_path / "script.py", tmp_path / "out", tmp_path / "pids"
    script.write_text(KILLED)
    command = [sys.executable, script, folder, out, str(workers), str(renames), pids]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == -signal.SIGKILL
    if renames < ALL_RENAMES:
        with pytest.raises(UsageError, match="did not finish; run the same fastalex-prepare again"):
            Dataset.open(out)
    else:
        Dataset.open(out)
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not alive(pid))

    written: list[str] = []
    write = MODULE.write_shard
    monkeypatch.setattr(MODULE, "write_shard", lambda *a: written.append(a[1]) or write(*a))
    prepare(image_folder(folder), out, workers=1)
    assert contents(out) == uninterrupted
    finished_before = (renames - 1) // 3
    assert len(written) == max(7 - finished_before, 0)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "a worker outlived its killed parent"
        time.sleep(0.05)


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    folder: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    script = "from fastalex.commands import launch; launch.prepare()"
    out = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, "-c", script, folder, out, "--workers", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert run.returncode == 1
    line = run.stderr.strip()
    assert "\n" not in line
    assert line.startswith(f"fastalex-prepare: cannot write {out}/train-00000.tar: File too large;")
    assert "make room" in line
    assert [path.name for path in out.glob("*.tar*")] == []
    prepare(image_folder(folder), out, workers=1)
    assert contents(out) == uninterrupted


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
    tmp_path: Path, fill: Callable[[Path, int], None], capsys: pytest.CaptureFixture[str]
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
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(image_folder(folder), tmp_path / "out")
    before = contents(tmp_path / "out")
    capsys.readouterr()
    assert prepare(image_folder(folder), tmp_path / "out").fingerprint == first.fingerprint
    assert contents(tmp_path / "out") == before
    assert "is already prepared from the files in" in capsys.readouterr().err


def test_two_runs_into_one_folder_wait_for_each_other(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fd = os.open(out, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    run = threading.Thread(target=prepare, args=(image_folder(folder), out))
    run.start()
    run.join(0.5)
    assert run.is_alive()
    assert list(out.iterdir()) == []
    os.close(fd)
    run.join(30)
    assert len(Dataset.open(out).train) == 40


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


def test_a_worker_that_dies_is_an_error_not_a_hang(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastalex.data._workers._start_worker", os.abort)
    with pytest.raises(RunError, match="a worker process died"):
        prepare(image_folder(folder), tmp_path / "out", workers=2)


def test_fingerprint_tells_contents_apart(
    dataset: Dataset, folder: Path, tmp_path: Path, fill: Callable[[Path, int], None]
) -> None:
    fill(tmp_path / "other" / "train", 12)
    fill(tmp_path / "other" / "val", 6)
    other = prepare(image_folder(tmp_path / "other"), tmp_path / "out")
    assert other.fingerprint != dataset.fingerprint
    text = (dataset.root / "dataset.json").read_bytes()
    assert dataset.fingerprint == hashlib.sha256(text).hexdigest()
