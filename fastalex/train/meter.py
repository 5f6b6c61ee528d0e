"""The losses of steps that the device may not have finished yet, and what the log says of them."""

import time
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Collects losses on the device; `fetch` brings them over, the only wait for it."""

    def __init__(self, batch_size: int, steps_per_epoch: int) -> None:
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self._entries: list[tuple[int, float, Tensor]] = []
        self._since = time.monotonic()

    def add(self, step: int, lr: float, loss: Tensor) -> None:
        """Note the loss (a scalar tensor) and the weights' rate of a step."""
        self._entries.append((step, lr, loss))

    def fetch(self) -> list[dict[str, Any]]:
        """The log lines of the steps since the last fetch."""
        if not self._entries:
            return []
        losses = torch.stack([loss for _, _, loss in self._entries]).tolist()
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = round(len(losses) * self.batch_size / seconds, 1)
        lines = [
            {
                "step": step,
                "epoch": self.passes(step),
                "loss": loss,
                "lr": lr,
                "images_per_s": rate,
            }
            for (step, lr, _), loss in zip(self._entries, losses, strict=True)
        ]
        self._entries.clear()
        self.restart_clock()
        return lines

    def restart_clock(self) -> None:
        """Leave the time since the last fetch (a validation, a checkpoint) out of the next rate."""
        self._since = time.monotonic()

    def passes(self, step: int) -> float:
        """Passes over the training set made after `step` steps; whole ones as an int."""
        whole, rest = divmod(step, self.steps_per_epoch)
        return whole if rest == 0 else round(whole + rest / self.steps_per_epoch, 4)
