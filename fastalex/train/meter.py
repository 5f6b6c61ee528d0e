"""The losses of steps that the device may not have finished yet, and what the log says of them."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from fastalex.train.distributed import ALONE, World


class Meter:
    """Collects losses on the device; `fetch` brings them over, the only wait for it."""

    def __init__(self, batch_size: int, steps_per_epoch: int, world: World = ALONE) -> None:
        self.batch_size, self.steps_per_epoch, self._world = batch_size, steps_per_epoch, world
        self._entries: list[tuple[int, float, Tensor]] = []
        self._since = time.monotonic()
        self.to_blame: list[int] = []
        """The ranks that first computed what is not finite, of the last fetch."""

    def add(self, step: int, lr: float, loss: Tensor, health: Tensor) -> None:
        """Note a step: the weights' rate, and, as scalar tensors, the loss that this rank computed
        and a number that is finite as long as what this rank itself computed is."""
        self._entries.append((step, lr, torch.stack([loss.float(), health.float()])))

    def fetch(self) -> list[dict[str, Any]]:
        """The log lines of the steps since the last fetch; the loss is the mean of the ranks'.

        All ranks call it after the same step, and get the same.
        """
        if not self._entries:
            return []
        mine = torch.stack([numbers for _, _, numbers in self._entries]).double().tolist()
        by_rank = self._world.gather(mine)
        by_step = list(zip(*by_rank, strict=True))
        losses = [sum(loss for loss, _ in ranks) / len(ranks) for ranks in by_step]
        sick = [[i for i, (_, x) in enumerate(ranks) if not math.isfinite(x)] for ranks in by_step]
        self.to_blame = next(filter(None, sick), [])
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
