"""Momentum SGD as the paper writes it (section 5): the learning rate stands inside the velocity.

    V <- momentum * V - weight_decay * lr * W - lr * g
    W <- W + V

`torch.optim.SGD` keeps the rate outside (W <- W - lr * V). The two agree while the rate is
constant; after a drop by ten the paper's velocity still carries the old, larger steps. Caffe's
solver has the paper's form, cuda-convnet too. The arithmetic is `fastalex.kernels.momentum_sgd_`.
"""

from collections.abc import Iterable, Mapping
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
        masters: by parameter, the float32 weight that it is a rounded copy of: a step updates that,
            and rounds it into the parameter, whatever had been put there. They are not part of the
            state_dict: save them beside it, and copy them back in place.

    Raises:
        UsageError: a negative `lr` or `weight_decay`, a `momentum` outside [0, 1), or a master that
            is not float32, not of its parameter's shape, or not of a parameter given.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        masters: Mapping[Any, Tensor] | None = None,
    ) -> None:
        if not lr >= 0:
            raise UsageError(f"MomentumSGD: `lr` must be >= 0, got {lr}")
        if not 0 <= momentum < 1:
            raise UsageError(f"MomentumSGD: `momentum` must be in [0, 1), got {momentum}")
        if not weight_decay >= 0:
            raise UsageError(
                f"MomentumSGD: `weight_decay` must not be negative, got {weight_decay}"
            )
        self.masters = dict(masters or {})
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        given = {p for group in self.param_groups for p in group["params"]}
        for parameter, master in self.masters.items():
            fits = parameter in given and master.shape == parameter.shape
            if not fits or master.dtype != torch.float32:
                raise UsageError(
                    "MomentumSGD: a master in `masters` must be float32 and stand beside one of "
                    f"`params`, in its shape; got {master.dtype} of {tuple(master.shape)}"
                )
        for group in self.param_groups:
            for parameter in group["params"]:  # a first step that makes them would compile twice
                if parameter.requires_grad:
                    self.velocity(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            rounded = [p for p in weights if p in self.masters]
            whole = [p for p in weights if p not in self.masters]
            if rounded:
                self._update(rounded, [self.masters[p] for p in rounded], rounded, group)
            if whole:
                self._update(whole, whole, [], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's, but velocities of half parameters stay float32: torch rounds them."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, state in state_dict["state"].items():
            if (master := self.masters.get(parameters[i])) is not None:
                self.state[parameters[i]]["velocity"] = state["velocity"].to(master, copy=True)

    def velocity(self, parameter: Tensor) -> Tensor:
        """The parameter's, in float32 where it has a master; zero before its first step."""
        state = self.state[parameter]
        if not state:
            state["velocity"] = torch.zeros_like(self.masters.get(parameter, parameter))
        return state["velocity"]

    def _update(
        self,
        parameters: list[Tensor],
        weights: list[Tensor],
        copies: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        velocities = [self.velocity(p) for p in parameters]
        grads: Any = [p.grad for p in parameters]
        momentum_sgd_(
            weights, velocities, grads, group["lr"], group["momentum"], group["weight_decay"],
            copies=copies,
        )  # fmt: skip
