"""fastalex-train killed, stopped and out of disk: the run goes on from what it kept."""

import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fastalex.train.log import read_log

from .conftest import SMALL, finish, start


def train(prepared: Path, run: Path, *more: object, **options) -> subprocess.Popen:
    return start("train", "--data", prepared, "--out", run, *SMALL, *more, **options)


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(line["step"] >= step for line in read_log(run)):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came: {process.communicate()}")


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = (load_file(r / "model.safetensors") for r in (run, other))
    assert all(bool((ours[key] == theirs[key]).all()) for key in theirs)


def test_killed_at_any_moment_and_resumed_it_ends_the_same(finished, prepared, tmp_path):
    """Killed within the first pass, before any checkpoint, and then once more."""
    run = tmp_path / "run"
    process = train(prepared, run, "--epochs", 4)
    for step in (3, 15):
        wait_for_step(run, step, process)
        process.send_signal(signal.SIGKILL)
        finish(process)
        process = start("train", "--resume", run)
    result = finish(process)
    assert result.code == 0, result.err
    assert_same_weights(run, finished)
    steps = [line["step"] for line in read_log(run) if "loss" in line]
    assert steps == list(range(1, 25))


@pytest.mark.parametrize(
    ("name", "code"), [pytest.param("SIGINT", 130, marks=pytest.mark.slow), ("SIGTERM", 143)]
)
def test_a_signal_finishes_the_step_saves_and_leaves(
    finished, prepared, tmp_path, name, code, call
):
    run = tmp_path / "run"
    process = train(prepared, run, "--epochs", 4)
    wait_for_step(run, 8, process)
    process.send_signal(getattr(signal, name))
    got, _, err = finish(process)
    assert got == code, err
    assert err.strip().splitlines()[-1].startswith(f"fastalex-train: stopped by {name} at step ")
    assert "Traceback" not in err
    assert (run / "last.pt").exists()
    result = call("train", "--resume", run)
    assert result.code == 0, result.err
    assert_same_weights(run, finished)


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(finished, prepared, tmp_path, call):
    """A limit on file size stands in for the disk: the first write past it fails."""
    run = tmp_path / "run"
    arguments = ["--data", prepared, "--out", run, *SMALL, "--epochs", 4, "--steps", 6]
    assert call("train", *arguments).code == 0
    good = (run / "last.pt").read_bytes()
    limit = len(good) - 1000

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start("train", "--resume", run, "--steps", 24, preexec_fn=small_disk)
    code, _, err = finish(process)
    assert code == 1
    assert "last.pt cannot be written" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert (run / "last.pt").read_bytes() == good
    assert not list(run.glob(".*"))
    assert call("train", "--resume", run, "--steps", 24).code == 0
    assert_same_weights(run, finished)
