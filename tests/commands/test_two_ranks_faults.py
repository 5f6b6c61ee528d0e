"""fastalex-train on two ranks, one of which fails, hangs or differs: real training, real processes.

What breaks a rank is faults/sitecustomize.py. test_ranks.py has the launcher alone.
"""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastalex.commands import launch, ranks
from fastalex.train import checkpoint
from fastalex.train.log import read_log

from .conftest import SMALL, Result, finish, start
from .test_survival import assert_same_weights, wait_for_step
from .two_ranks import assert_none_left, by_torchrun, complaints, environment, log_of

EIGHTEEN_STEPS = ["--epochs", 3]
SOON = 20
"""Seconds from the fault to the end of all, on a busy machine too."""


@pytest.fixture
def launched(monkeypatch, capfd) -> Iterator[Callable[..., Result]]:
    """fastalex-train, launched here; its ranks, if any, are processes."""

    def _launched(*arguments: object, fault: str = "none 0") -> Result:
        for name, value in environment(fault).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["fastalex-train", *map(str, arguments)])
        code = 0
        capfd.readouterr()
        try:
            launch.train()
        except SystemExit as error:
            code = error.code
        return Result(code, *capfd.readouterr())

    before = signal.getsignal(signal.SIGTERM)
    yield _launched
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks under torchrun, never interrupted."""
    run = tmp_path_factory.mktemp("two") / "whole"
    process = by_torchrun("--data", prepared, "--out", run, *SMALL, *EIGHTEEN_STEPS)
    result = finish(process)
    assert result.code == 0, result.err
    (run.parent / "out").write_text(result.out)
    (run.parent / "err").write_text(result.err)
    return run


def test_two_ranks_leave_and_say_what_one_process_does(whole, prepared, tmp_path, call):
    run = tmp_path / "run"
    one = call("train", "--data", prepared, "--out", run, *SMALL, *EIGHTEEN_STEPS)
    assert one.code == 0, one.err

    def names(run: Path) -> list[str]:
        return sorted(re.sub(r"\.\d+.*", "", path.name) for path in run.iterdir())

    assert names(whole) == names(run)
    for ours, theirs in zip(log_of(whole), log_of(run), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    both = Result(0, *((whole.parent / name).read_text() for name in ("out", "err")))
    assert not complaints(both)
    assert len(both.err.splitlines()) <= len(one.err.splitlines()) + 1  # a line every ten seconds
    same = [line for line in one.out.splitlines() if line.startswith(("epoch", "data", "done"))]
    lines = both.out.splitlines()
    assert [line for line in lines if line.startswith(("epoch", "data", "done"))] == same
    assert len(lines) == len(one.out.splitlines())
    assert (
        "on 2 processes of the CPU (1 threads each), towers in 2 micro-batches: to try" in both.out
    )


BROKEN = [
    ("kill 8", "towers", "rank 1 was killed by SIGKILL (out of memory?)"),
    ("raise 8", "towers", "rank 1: IndexError: list index out of range"),
    ("hang 8", "towers", "rank 1 hangs at step 8 (--timeout)"),
    pytest.param("stop 8", "data", "rank 1 hangs at ", marks=pytest.mark.slow),
    ("nan 8", "towers", "the loss is nan on rank 1 at step 8, learning rate 0.01; the last good"),
    ("nan 8", "data", "the loss is nan on rank 1 at step 8, learning rate 0.01; the last good"),
]


@pytest.mark.parametrize(("fault", "parallel", "line"), BROKEN)
def test_a_broken_rank_ends_the_run_and_is_named(
    fault, parallel, line, whole, prepared, tmp_path, launched, monkeypatch
):
    monkeypatch.setattr(ranks, "SECONDS_TO_STOP", 1)
    run = tmp_path / "run"
    arguments = ["--data", prepared, "--out", run, *SMALL, *EIGHTEEN_STEPS, "--parallel", parallel]
    result = launched(*arguments, "--gpus", 2, "--timeout", 2, fault=fault)
    took = time.time() - (run / "log.jsonl").stat().st_mtime
    assert result.code == 1
    (said,) = complaints(result)
    assert said.startswith(f"fastalex-train: {line}")
    assert took < SOON
    assert_none_left(run)
    state = checkpoint.load(run)
    assert state is not None
    assert state["step"] == 6
    assert [x["step"] for x in read_log(run) if "loss" in x] == list(range(1, 8))
    if fault == "kill 8":
        resumed = launched("--resume", run, "--gpus", 1)
        assert resumed.code == 0, resumed.err
        for ours, theirs in zip(log_of(run), log_of(whole), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_stopped_twice_and_resumed_it_ends_the_same(whole, prepared, tmp_path, launched):
    """By Ctrl-C, and by a SIGTERM that one rank alone gets."""
    run = tmp_path / "run"
    arguments = ["--data", prepared, "--out", run, *SMALL, *EIGHTEEN_STEPS, "--gpus", 2]
    process = start("train", *arguments, environment=environment("pause 8"))
    wait_for_step(run, 7, process)
    process.send_signal(signal.SIGINT)
    assert_stopped(finish(process), run, 130, "stopped by SIGINT at step 8, saved; go on with: ")
    result = launched("--resume", run, fault="sigterm 14")
    assert_stopped(result, run, 143, "stopped by SIGTERM at step 14, saved; go on with: ")
    result = launched("--resume", run)
    assert result.code == 0, result.err
    assert log_of(run) == log_of(whole)
    assert_same_weights(run, whole)


def assert_stopped(result: Result, run: Path, code: int, line: str) -> None:
    assert result.code == code
    (said,) = complaints(result)
    assert said.startswith(f"fastalex-train: {line}")
    assert_none_left(run)


def test_torchrun_starts_a_broken_run_again_from_its_checkpoint(whole, prepared, tmp_path):
    run = tmp_path / "run"
    process = by_torchrun("--data", prepared, "--out", run, *SMALL, *EIGHTEEN_STEPS, fault="exit 8")
    result = finish(process)
    assert result.code == 0, result.err
    assert "rank 0: another rank has gone" in result.err
    assert log_of(run) == log_of(whole)
    assert_same_weights(run, whole)
    assert_none_left(run)
