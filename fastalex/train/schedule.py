"""Learning rates as a function of the passes made over the training set.

    constant   lr
    plateau    lr / 10 each time the validation error has not improved for `patience` passes (the
               paper, section 5, by hand), never under `lr_floor`
    step       lr / 10 every `step_epochs` passes (Caffe's solver)
    cosine     linear warm-up, then lr * (1 + cos(pi * t)) / 2, t from 0 to 1 (Loshchilov and Hutter
               2017; the warm-up is Goyal et al. 2017)
    original   what was done by hand in 2012, layer by layer: PHASES_2012

The trainer asks `rates(epoch)` before every step and tells `observe(error)` after every validation.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from fastalex.train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Rates:
    """The learning rates of one step, and whether the colour noise is on."""

    weights: float
    biases: float
    conv1_weights: float
    conv1_biases: float
    lighting: bool = True


# The notes at the end of the 2012 code's layer-params-145.cfg, in passes made. They change only the
# weights' rate: the biases stay at twice the first rate to the end, conv1's until it is frozen.
PHASES_2012: tuple[tuple[int, Rates], ...] = (
    (0, Rates(weights=1e-2, biases=2e-2, conv1_weights=1e-2, conv1_biases=2e-2)),
    (25, Rates(weights=1e-3, biases=2e-2, conv1_weights=1e-3, conv1_biases=2e-2)),
    (51, Rates(weights=1e-4, biases=2e-2, conv1_weights=1e-4, conv1_biases=2e-2)),
    (67, Rates(1e-4, biases=2e-2, conv1_weights=1e-5, conv1_biases=2e-2, lighting=False)),
    (72, Rates(1e-4, biases=2e-2, conv1_weights=0.0, conv1_biases=0.0, lighting=False)),
    (79, Rates(1e-5, biases=2e-2, conv1_weights=0.0, conv1_biases=0.0, lighting=False)),
)
BASE_RATE_2012 = PHASES_2012[0][1].weights


class Schedule:
    """The schedule that a checked `config` names. Its state goes into the checkpoint."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.drops = 0
        self.best_error = math.inf
        self.bad_epochs = 0

    def rates(self, epoch: float) -> Rates:
        """The rates after `epoch` passes over the training set (a fraction within a pass)."""
        if self.config.schedule == "original":
            return self._phase(epoch)
        lr = _SCHEDULES[self.config.schedule](self, epoch)
        bias = lr * self.config.bias_lr_scale
        return Rates(weights=lr, biases=bias, conv1_weights=lr, conv1_biases=bias)

    def observe(self, error: float) -> bool:
        """Take one validation error; True where it made the rate drop."""
        if error < self.best_error:
            self.best_error, self.bad_epochs = error, 0
            return False
        self.bad_epochs += 1
        if self.config.schedule != "plateau" or self.bad_epochs < self.config.patience:
            return False
        self.bad_epochs = 0
        before = self._plateau(0.0)
        self.drops += 1
        return self._plateau(0.0) < before

    def state_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("drops", "best_error", "bad_epochs")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)

    def _phase(self, epoch: float) -> Rates:
        current = [rates for start, rates in PHASES_2012 if epoch >= start][-1]
        factor = self.config.lr / BASE_RATE_2012
        names = ("weights", "biases", "conv1_weights", "conv1_biases")
        return replace(current, **{name: factor * getattr(current, name) for name in names})

    def _constant(self, _epoch: float) -> float:
        return self.config.lr

    def _plateau(self, _epoch: float) -> float:
        floor = min(self.config.lr_floor, self.config.lr)
        return max(self.config.lr / 10**self.drops, floor)

    def _step(self, epoch: float) -> float:
        return self.config.lr / 10 ** int(epoch / self.config.step_epochs)

    def _cosine(self, epoch: float) -> float:
        warmup, total = self.config.warmup_epochs, self.config.epochs
        if epoch < warmup:
            return self.config.lr * max(epoch, 1e-3 * warmup) / warmup
        t = min((epoch - warmup) / max(total - warmup, 1e-9), 1.0)
        return self.config.lr * (1 + math.cos(math.pi * t)) / 2


_SCHEDULES = {
    "constant": Schedule._constant,
    "plateau": Schedule._plateau,
    "step": Schedule._step,
    "cosine": Schedule._cosine,
}
