"""Preparation with many workers, kills, full disks, two at once: the same bytes in the end."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastalex.data import Dataset, image_folder, prepare
from fastalex.errors import RunError, UsageError

MODULE = sys.modules["fastalex.data.prepare"]  # the package's attribute is the function
ROOT = Path(__file__).parents[2]
Contents = Callable[[Path], dict[str, bytes]]

pytestmark = pytest.mark.usefixtures("small_shards")


def test_more_workers_and_another_order_of_listing_give_the_same_bytes(
    folder: Path,
    tmp_path: Path,
    uninterrupted: dict[str, bytes],
    contents: Contents,
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
    contents: Contents,
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
    folder: Path, tmp_path: Path, uninterrupted: dict[str, bytes], contents: Contents
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
    assert line.startswith(
        f"fastalex-prepare: {out}/train-00000.tar cannot be written (File too large);"
    )
    assert "make room" in line
    assert [path.name for path in out.glob("*.tar*")] == []
    prepare(image_folder(folder), out, workers=1)
    assert contents(out) == uninterrupted


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


def test_a_worker_that_dies_is_an_error_not_a_hang(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastalex.data._workers._start_worker", os.abort)
    with pytest.raises(RunError, match="a worker process died"):
        prepare(image_folder(folder), tmp_path / "out", workers=2)
