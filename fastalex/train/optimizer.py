"""Momentum SGD as the paper writes it (section 5): the learning rate stands inside the velocity.

    V <- momentum * V - weight_decay * lr * W - lr * g
    W <- W + V

`torch.optim.SGD` keeps the rate outside (W <- W - lr * V). The two agree while the rate is
constant; after a drop by ten the paper's velocity still carries the old, larger steps. Caffe's
solver has the paper's form, cuda-convnet too. The arithmetic is `fastalex.kernels.momentum_sgd_`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastalex.errors import UsageError
from fastalex.kernels.sgd import momentum_sgd_


class MomentumSGD(torch.optim.Optimizer):
    """The update above, for each group with its own `lr` and `weight_decay`.

    Args:
        params: parameters, or dicts of groups, as any `torch.optim.Optimizer` takes them.
        lr: learning rate.
        momentum: share of the velocity kept at each step.
        weight_decay: L2 coefficient; it acts through the velocity and is scaled by `lr`.

    Raises:
        UsageError: a negative `lr` or `weight_decay`, or a `momentum` outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        if not lr >= 0:
            raise UsageError(f"MomentumSGD: `lr` must be >= 0, got {lr}")
        if not 0 <= momentum < 1:
            raise UsageError(f"MomentumSGD: `momentum` must be in [0, 1), got {momentum}")
        if not weight_decay >= 0:
            raise UsageError(
                f"MomentumSGD: `weight_decay` must not be negative, got {weight_decay}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for w in weights:
            if not self.state[w]:
                self.state[w]["velocity"] = torch.zeros_like(w, memory_format=torch.preserve_format)
        velocities = [self.state[w]["velocity"] for w in weights]
        grads: Any = [w.grad for w in weights]
        momentum_sgd_(
            weights, velocities, grads, group["lr"], group["momentum"], group["weight_decay"]
        )
