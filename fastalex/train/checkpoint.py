"""last.pt: all that the next step of a run depends on.

A checkpoint is one dict of plain values and tensors (it loads with `weights_only=True`): the
single-model state_dict, optimizer, schedule, step, config, classes and mean image.
It is the same however many ranks wrote it, and any number reads it.
"""

import io
from pathlib import Path
from typing import Any

import torch

from fastalex import files
from fastalex.errors import RunError, UsageError

LAST = "last.pt"
FORMAT = 1
GO_ON = "make room, then --resume goes on from what was saved before"


def save(run: Path, state: dict[str, Any]) -> None:
    """Write `state` as the run's last checkpoint.

    Raises:
        RunError: it cannot be written; the one before stays.
    """
    buffer = io.BytesIO()  # not into the file: torch's writer hides what a full disk says
    torch.save({"format": FORMAT, **state}, buffer)
    files.write(run / LAST, buffer.getbuffer(), GO_ON)


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
        raise RunError(
            f"{path} is damaged ({path.stat().st_size} bytes): put a copy in its place, or delete "
            "it and --resume starts again from config.json"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"{path} is no checkpoint of this version of fastalex (format {FORMAT})")
    return state
