"""What every command does with errors: one line, an exit code, no traceback unless asked."""

import os
import subprocess
import sys

import pytest

from .conftest import ROOT, SMALL, finish, start


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare", "profile"])
def test_help_names_the_command_and_fits_a_screen(call, command):
    result = call(command, "--help")
    assert result.code == 0
    assert f"usage: fastalex-{command}" in result.out
    assert max(map(len, result.out.splitlines())) <= 100


def test_train_help_has_the_options_people_look_for(call):
    text = call("train", "--help").out
    for option in (
        "recipe", "data", "out", "variant", "gpus", "device", "batch-size", "epochs", "steps",
        "lr", "schedule", "seed", "precision", "no-compile", "resume", "init-from", "skip-bad",
        "log-every", "parallel", "micro-batches", "timeout",
    ):  # fmt: skip
        assert f"--{option}" in text, option


BAD_USAGE = [
    ("train", ["--data", "/no/such/folder"], ["/no/such/folder"]),
    ("train", ["--recipe", "magic"], ["--recipe", "magic", "'demo', 'paper'"]),
    ("train", ["--batch-size", "many"], ["--batch-size", "many", "--help"]),
    ("train", ["--no-such-option", "1"], ["--no-such-option"]),
    ("train", ["--resume"], ["--resume"]),
    ("train", ["--lr", "-1"], ["--lr", "-1"]),
    ("train", ["--gpus", "64"], ["--gpus 64", "leave --gpus out"]),
    ("train", ["--gpus", "2", "--device", "cpu", "--batch-size", "9", "--parallel", "data"],
     ["--batch-size 9", "a multiple of 2"]),
    ("train", ["--gpus", "2", "--device", "cpu", "--parallel", "towers", "--variant", "caffe"],
     ["--parallel towers", "caffe", "choose data or hybrid"]),
    ("train", ["--gpus", "2", "--device", "cpu", "--micro-batches", "3"], ["--micro-batches 3"]),
    ("train", ["--gpus", "2", "--timeout", "0"], ["--timeout", "greater than 0"]),
    ("train", ["--resume", "/no/such/run"], ["/no/such/run", "not a run directory"]),
    ("evaluate", ["/no/such/run"], ["/no/such/run", "not a run directory"]),
    ("evaluate", [], ["run", "--help"]),
    ("prepare", ["/no/such/folder", "out"], ["/no/such/folder"]),
    ("profile", ["alexnet"], ["alexnet", "neither a run directory nor a variant", "torchvision"]),
    ("profile", [], ["RUN|VARIANT", "--help"]),
    ("profile", ["paper", "--batch-size", "0"], ["--batch-size", "at least 1"]),
    ("profile", ["paper", "--json", "/no/such/profile.json"], ["--json", "no such folder"]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "arguments", "words"), BAD_USAGE)
def test_bad_usage_is_one_line_and_exit_2(call, command, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(command, *arguments)
    result.assert_one_line(2, f"fastalex-{command}: ", *words)
    assert not list(tmp_path.iterdir())


def test_gpus_2_without_two(tmp_path):
    process = start("train", "--gpus", 2, cwd=tmp_path, environment={"CUDA_VISIBLE_DEVICES": ""})
    finish(process).assert_one_line(2, "--gpus 2: torch finds 0 here", "add --device cpu")
    assert not list(tmp_path.iterdir())


def test_device_cuda_without_one(tmp_path):
    process = start("train", "--device", "cuda", environment={"CUDA_VISIBLE_DEVICES": ""})
    finish(process).assert_one_line(2, "--device cuda", "no GPU")


def test_debug_shows_the_traceback(call):
    with pytest.raises(ValueError, match="/no/such/folder"):
        call("train", "--debug", "--data", "/no/such/folder")


def test_what_nobody_foresaw_is_one_line_too(call, monkeypatch):
    def broken(argv):
        raise KeyError("surprise")

    monkeypatch.setattr("fastalex.commands.prepare.main", broken)
    call("prepare").assert_one_line(1, "KeyError", "surprise", "--debug")


def test_interrupted_before_training_begins(call, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastalex.commands.prepare.main", interrupted)
    call("prepare").assert_one_line(130, "interrupted")


def test_a_missing_extra_is_named(tmp_path):
    """As where only the base package is installed: the commands' imports fail."""
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError('No module', name='tyro')")
    process = start("train", "--help", environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    finish(process).assert_one_line(2, "tyro is not installed", "pip install 'fastalex[train]'")


def test_a_reader_that_leaves_early_is_no_error():
    command = (
        f"{sys.executable} -c 'from fastalex.commands import launch; launch.evaluate()' --help"
    )
    result = subprocess.run(
        f"{command} | head -n 1", shell=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.stderr == ""
    assert "usage" in result.stdout


def test_a_run_directory_that_cannot_be_made(call, prepared, tmp_path):
    (tmp_path / "file").write_text("")
    result = call("train", "--data", prepared, "--out", tmp_path / "file" / "run", *SMALL)
    assert result.code == 1
    assert "file/run: Not a directory" in result.err.strip().splitlines()[-1]
