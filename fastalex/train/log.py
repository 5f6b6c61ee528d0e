"""What a run tells while it goes: log.jsonl, TensorBoard events, a progress bar.

log.jsonl has one object a line. Training lines: step, epoch, loss, lr, images_per_s. Validation
lines: step, epoch, val_loss, top1_error, top5_error (fractions). `epoch` counts passes made over
the training set, `step` the steps made since the run's beginning.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fastalex import files
from fastalex.train.checkpoint import GO_ON

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
    """Appends to a run's log from `step` on; what a killed run had logged past it is dropped."""

    def __init__(self, run: Path, *, step: int, total_steps: int) -> None:
        kept = [line for line in read_log(run) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write(run / LOG, text.encode(), GO_ON)
        self._file = open(run / LOG, "a", buffering=1)  # noqa: SIM115 - closed in close()
        self._board = SummaryWriter(str(run), purge_step=step + 1 if step else None)
        # disable=None: no bar where stderr is no terminal; `_say` prints lines there instead.
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=None, smoothing=0.1)
        self._quiet_until = 0.0
        self._error = ""

    def training(self, lines: list[dict[str, Any]]) -> None:
        """Log the steps of one fetch; each line has step, epoch, loss, lr, images_per_s."""
        for line in lines:
            self._write(line)
            for key in ("loss", "lr", "images_per_s"):
                self._board.add_scalar(f"train/{key}", line[key], line["step"])
        last = lines[-1]
        self._bar.update(len(lines))
        text = f"loss {last['loss']:.3f}, {last['images_per_s']:.0f} images/s"
        self._bar.set_postfix_str(text + self._error)
        if self._bar.disable and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + 10.0
            print(f"step {last['step']}/{self._bar.total}: {text}", file=sys.stderr, flush=True)

    def validation(self, line: dict[str, Any], epochs: int) -> None:
        """Log one validation; the line has step, epoch, val_loss, top1_error, top5_error."""
        self._write(line)
        for key in ("val_loss", "top1_error", "top5_error"):
            self._board.add_scalar(f"val/{key}", line[key], line["step"])
        self._error = f", error {line['top1_error']:.1%}"
        self.say(
            f"epoch {line['epoch']:g}/{epochs}: val loss {line['val_loss']:.3f}, "
            f"top-1 error {line['top1_error']:.2%}, top-5 error {line['top5_error']:.2%}"
        )

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
