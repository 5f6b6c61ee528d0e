"""The run directory's files that must be whole or absent: last.pt, model.safetensors, config.json.

A checkpoint is one dict of plain values and tensors (it loads with `weights_only=True`): the
single-model state_dict, optimizer, schedule, step, random states, config, classes and mean image.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastalex.errors import RunError, UsageError

LAST = "last.pt"
FORMAT = 1


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it in `path`'s place.

    A reader, or a kill, finds the old file or the new one, never half of one.

    Raises:
        RunError: the file cannot be written; what stood at `path` still does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        kept = "; the one written before is kept" if path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise RunError(
            f"{path} could not be written ({reason}){kept}: make room, then go on with --resume"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def save(run: Path, state: dict[str, Any]) -> None:
    """Write `state` as the run's last checkpoint."""
    write_whole(run / LAST, lambda path: torch.save({"format": FORMAT, **state}, path))


def load(run: Path) -> dict[str, Any] | None:
    """The run's last checkpoint, on the CPU; None where none was written.

    Raises:
        RunError: the file is there and cannot be read.
        UsageError: another version of fastalex wrote it.
    """
    path = run / LAST
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load: zip, pickle and OS errors alike
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} cannot be read as a checkpoint: {first}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"{path} is no checkpoint of this version of fastalex (format {FORMAT})")
    return state


def random_states() -> dict[str, torch.Tensor]:
    """The states of torch's generators, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
