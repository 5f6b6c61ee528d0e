"""What every command does with errors: one line, an exit code, no traceback unless asked."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "from fastalex import commands; commands.{}()"


def run(
    command: str, *arguments: str, cwd: Path | None = None, timeout: float = 120, **environment
):
    import os

    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(command), *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )  # fmt: skip


def assert_one_line(result, code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], result.stderr


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare"])
def test_help_names_every_option(command):
    result = run(command, "--help")
    assert result.returncode == 0
    assert f"usage: fastalex-{command}" in result.stdout
    for line in result.stdout.splitlines():
        assert len(line) <= 120


def test_train_help_has_the_options_people_look_for():
    text = run("train", "--help").stdout
    for option in (
        "recipe", "data", "out", "variant", "gpus", "device", "batch-size", "epochs", "steps", "lr",
        "schedule", "seed", "precision", "no-compile", "resume", "init-from", "skip-bad",
        "log-every",
    ):  # fmt: skip
        assert f"--{option}" in text, option


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("train", ["--data", "/no/such/folder"], ["/no/such/folder"]),
        ("train", ["--recipe", "magic"], ["--recipe", "magic", "'demo', 'paper'"]),
        ("train", ["--batch-size", "many"], ["--batch-size", "many", "--help"]),
        ("train", ["--no-such-option", "1"], ["--no-such-option"]),
        ("train", ["--lr", "-1"], ["--lr", "-1"]),
        ("train", ["--gpus", "2"], ["--gpus 2"]),
        ("train", ["--resume", "/no/such/run"], ["/no/such/run", "not a run directory"]),
        ("evaluate", ["/no/such/run"], ["/no/such/run", "not a run directory"]),
        ("evaluate", [], ["fastalex-evaluate"]),
        ("prepare", ["/no/such/folder", "out"], ["/no/such/folder"]),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(command, arguments, words, tmp_path):
    result = run(command, *arguments, cwd=tmp_path)
    assert_one_line(result, 2, f"fastalex-{command}: ", *words)
    assert not list(tmp_path.iterdir())


def test_device_cuda_without_one(tmp_path):
    result = run("train", "--device", "cuda", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert_one_line(result, 2, "--device cuda", "no GPU")


def test_debug_shows_the_traceback(tmp_path):
    result = run("train", "--debug", "--data", "/no/such/folder", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "UsageError" in result.stderr


def test_a_missing_extra_is_named(tmp_path):
    """As where only the base package is installed: the commands' imports fail."""
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError('No module', name='tyro')")
    result = run("train", "--help", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    assert_one_line(result, 1, "tyro is not installed", "pip install 'fastalex[train]'")


def test_a_file_that_cannot_be_written(prepared, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    result = run("train", "--data", str(prepared), "--device", "cpu", "--out", str(out),
                 "--batch-size", "8", "--width", "0.05")  # fmt: skip
    assert_one_line(result, 1, "file")
