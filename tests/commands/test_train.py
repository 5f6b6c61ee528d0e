"""fastalex-train and fastalex-evaluate from outside: runs, kills, signals, full disks."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fastalex.train.log import read_log

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
SMALL = [
    "--device", "cpu", "--width", "0.05", "--init", "he", "--input-std", "64", "--batch-size", "8",
    "--precision", "fp32", "--no-compile", "--log-every", "1",
]  # fmt: skip


def start(command: str, *arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", f"from fastalex import commands; commands.{command}()",
         *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen, timeout: float = 180) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def train(prepared: Path, run: Path, *more: object, **options) -> subprocess.Popen:
    return start("train", "--data", prepared, "--out", run, *SMALL, *more, **options)


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(line["step"] >= step for line in read_log(run)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came: {process.communicate()}")


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory) -> Path:
    """Four passes of six steps, by the command, never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    code, out, err = finish(train(prepared, run, "--epochs", 4))
    assert code == 0, err
    (run / "stdout.txt").write_text(out)
    return run


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = (load_file(r / "model.safetensors") for r in (run, other))
    assert all(bool((ours[key] == theirs[key]).all()) for key in theirs)


def test_it_says_what_where_and_what_next(finished):
    out = (finished / "stdout.txt").read_text()
    assert "variant paper at 0.05 of its width, he initialisation, fp32, not compiled" in out
    assert "48 training and 12 validation images in 3 classes" in out
    assert f"run directory: {finished}" in out
    assert f"next:  fastalex-evaluate {finished} --ten-crop" in out
    assert "epoch 4/4: val loss" in out
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_agrees_with_the_last_validation(finished, prepared):
    code, out, err = finish(start("evaluate", finished, "--data", prepared))
    assert code == 0, err
    last = [line for line in read_log(finished) if "val_loss" in line][-1]
    assert f"top-1 error {last['top1_error']:.2%}" in out
    assert f"loss        {last['val_loss']:.4f}" in out
    assert "centre crop" in out
    code, out, err = finish(start("evaluate", finished, "--ten-crop"))
    assert code == 0, err
    assert "ten crops" in out


def test_killed_at_any_moment_and_resumed_it_ends_the_same(finished, prepared, tmp_path):
    """Killed within the first pass (no checkpoint yet), then twice more, later."""
    run = tmp_path / "run"
    process = train(prepared, run, "--epochs", 4)
    for step in (3, 8, 15):
        wait_for_step(run, step, process)
        process.send_signal(signal.SIGKILL)
        finish(process)
        process = start("train", "--resume", run)
    code, _out, err = finish(process)
    assert code == 0, err
    assert_same_weights(run, finished)
    steps = [line["step"] for line in read_log(run) if "loss" in line]
    assert steps == list(range(1, 25))


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_finishes_the_step_saves_and_leaves(finished, prepared, tmp_path, name, code):
    run = tmp_path / "run"
    process = train(prepared, run, "--epochs", 4)
    wait_for_step(run, 8, process)
    process.send_signal(getattr(signal, name))
    got, _, err = finish(process)
    assert got == code, err
    assert err.strip().splitlines()[-1].startswith(f"fastalex-train: stopped by {name} at step ")
    assert "Traceback" not in err
    assert (run / "last.pt").exists()
    got, _, err = finish(start("train", "--resume", run))
    assert got == 0, err
    assert_same_weights(run, finished)


def test_resume_of_a_finished_run_says_so_and_changes_nothing(finished):
    before = (finished / "model.safetensors").read_bytes()
    code, out, err = finish(start("train", "--resume", finished))
    assert code == 0, err
    assert "done:" in out
    assert (finished / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--variant", "caffe", "was started with paper"),
        ("--batch-size", 4, "was started with 8"),
        ("--seed", 1, "was started with 0"),
        ("--out", "elsewhere", "--out and --resume"),
    ],
)
def test_what_a_resumed_run_cannot_change(finished, option, value, words):
    code, _, err = finish(start("train", "--resume", finished, option, value))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert words in err


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(finished, prepared, tmp_path):
    """A limit on file size stands in for the disk: the first write past it fails."""
    run = tmp_path / "run"
    code, _, err = finish(train(prepared, run, "--epochs", 4, "--steps", 6))
    assert code == 0, err
    good = (run / "last.pt").read_bytes()
    limit = len(good) - 1000

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start("train", "--resume", run, "--steps", 24, preexec_fn=small_disk)
    code, _, err = finish(process)
    assert code == 1
    assert "last.pt could not be written" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert (run / "last.pt").read_bytes() == good
    assert not list(run.glob(".*"))
    code, _, err = finish(start("train", "--resume", run, "--steps", 24))
    assert code == 0, err
    assert_same_weights(run, finished)


def test_an_altered_shard_is_named(prepared, tmp_path):
    import shutil

    damaged = tmp_path / "dataset"
    shutil.copytree(prepared, damaged)
    shard = next(damaged.glob("train*.tar"))
    data = bytearray(shard.read_bytes())
    start_of_scan = data.index(b"\xff\xda") + 200
    data[start_of_scan : start_of_scan + 40] = bytes(40)
    shard.write_bytes(data)
    code, _, err = finish(train(damaged, tmp_path / "run", "--epochs", 1))
    assert code == 1
    assert shard.name in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    code, _, err = finish(train(damaged, tmp_path / "other", "--epochs", 1, "--skip-bad", 1))
    assert code == 0, err


def test_raw_folder_is_prepared_first_and_a_relative_path_survives(pictures, tmp_path):
    (tmp_path / "images").symlink_to(pictures)
    process = start("train", "--data", "images", "--out", "run", *SMALL, "--steps", 1, cwd=tmp_path)
    code, out, err = finish(process)
    assert code == 0, err
    assert "prepar" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert Path(config["data"]).is_absolute()
    assert config["recipe"] == "paper"
    code, _, err = finish(start("train", "--resume", tmp_path / "run", "--steps", 2, cwd="/"))
    assert code == 0, err


@pytest.mark.slow
def test_the_demo_reaches_95_percent_in_five_minutes(tmp_path):
    began = time.monotonic()
    code, _out, err = finish(start("train", "--device", "cpu", cwd=tmp_path), timeout=900)
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    last = [line for line in read_log(run) if "val_loss" in line][-1]
    assert last["top1_error"] <= 0.05
    assert time.monotonic() - began < 300
