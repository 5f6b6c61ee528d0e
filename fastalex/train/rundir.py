"""The run directory: who may begin in it, who may go on, and its config.json."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch

import fastalex
from fastalex import files
from fastalex.errors import RunError, UsageError
from fastalex.train.config import TrainConfig, flag

FIXED_AT_START = (
    "recipe", "variant", "width", "init", "init_from", "input_std", "batch_size", "seed"
)  # fmt: skip
"""What a resumed run cannot change: its network, and the order of its images."""


def check_resumed(config: TrainConfig, run: Path) -> None:
    """Raise UsageError where `config` changes what `run` was started with and must keep."""
    started = read_config(run)
    for name in FIXED_AT_START:
        before, now = getattr(started, name), getattr(config, name)
        if now != before:
            raise UsageError(
                f"{flag(name)} {now}: {run} was started with {before}; "
                "leave it out, or start a new run"
            )


def check_new(run: Path) -> None:
    """Raise UsageError where `run` is neither new nor an empty directory."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        hint = f"; to go on with it: --resume {run}" if (run / "config.json").exists() else ""
        raise UsageError(f"--out {run}: is there already and not empty; choose another{hint}")


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold the run directory; a killed process holds nothing."""
    fd = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{run}: another process is training here; wait for it to end"
            ) from error
        yield
    finally:
        os.close(fd)


def write_config(config: TrainConfig, run: Path) -> None:
    """Write the config in force, and the versions that it runs under, as the run's config.json."""
    versions = {"fastalex": fastalex.__version__, "torch": torch.__version__}
    text = json.dumps({"train": config.to_json(), "versions": versions}, indent=2) + "\n"
    files.write(run / "config.json", text.encode())


def read_config(run: Path) -> TrainConfig:
    """The config.json of a run directory.

    Raises:
        UsageError: `run` is no run directory.
        RunError: its config.json cannot be read.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UsageError(f"{run} is not a run directory: it has no config.json")
    try:
        values = json.loads(path.read_text())["train"]
        for name in ("data", "init_from"):
            values[name] = Path(values[name]) if values[name] is not None else None
        config = TrainConfig(**values)
        config.check()
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path} is not as fastalex wrote it ({error}); put it back, or start a new run"
        ) from error
    return config
