"""What a run tells while it goes: log.jsonl, TensorBoard events, a progress bar.

log.jsonl has one object a line. Training lines: step, epoch, loss, lr, images_per_s. Validation
lines: step, epoch, val_loss, top1_error, top5_error (fractions). `epoch` counts passes made over
the training set, `step` the steps made since the run's beginning.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastalex import files
from fastalex.errors import RunError
from fastalex.train.checkpoint import GO_ON
from fastalex.train.events import EventFile

LOG = "log.jsonl"


def read_log(run: Path) -> list[dict[str, Any]]:
    """The log's lines; a last line torn by a kill is left out."""
    path = run / LOG
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class RunLog:
    """Appends to a run's log from `step` on; what a killed run had logged past it is dropped. Of
    several ranks all but the `main` one say and write nothing.

    Raises:
        RunError: from any method, the disk is full.
    """

    def __init__(self, run: Path, *, step: int, total_steps: int, main: bool = True) -> None:
        self._path, self._main = run / LOG, main
        self._error = ""
        if not main:
            return
        kept = [line for line in read_log(run) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write(self._path, text.encode(), GO_ON)
        with self._room():
            self._file = open(self._path, "a")  # noqa: SIM115 - closed in close()
            self._events = EventFile(run, first_step=step + 1)
        # disable=None: no bar where stderr is no terminal; `training` prints lines there instead.
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=None, smoothing=0.1)
        self._quiet_until = 0.0

    def training(self, lines: list[dict[str, Any]]) -> None:
        """Log the steps of one fetch; each line has step, epoch, loss, lr, images_per_s."""
        if not self._main:
            return
        with self._room():
            self._write(lines)
            for line in lines:
                scalars = {f"train/{key}": line[key] for key in ("loss", "lr", "images_per_s")}
                self._events.scalars(line["step"], scalars)
        last = lines[-1]
        self._bar.update(len(lines))
        text = f"loss {last['loss']:.3f}, {last['images_per_s']:.0f} images/s"
        self._bar.set_postfix_str(text + self._error)
        if self._bar.disable and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + 10.0
            print(f"step {last['step']}/{self._bar.total}: {text}", file=sys.stderr, flush=True)

    def validation(self, line: dict[str, Any], epochs: int) -> None:
        """Log one validation; the line has step, epoch, val_loss, top1_error, top5_error."""
        if not self._main:
            return
        with self._room():
            self._write([line])
            keys = ("val_loss", "top1_error", "top5_error")
            self._events.scalars(line["step"], {f"val/{key}": line[key] for key in keys})
        self._error = f", error {line['top1_error']:.1%}"
        self.say(
            f"epoch {line['epoch']:g}/{epochs}: val loss {line['val_loss']:.3f}, "
            f"top-1 error {line['top1_error']:.2%}, top-5 error {line['top5_error']:.2%}"
        )

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if not self._main:
            return
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        if not self._main:
            return
        self._bar.close()
        for file in (self._events, self._file):
            with contextlib.suppress(OSError):  # reported when it was written to
                file.close()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"{self._path} cannot be written ({error.strerror}); {GO_ON}") from error
