"""Momentum SGD in PyTorch's own ops; the formula is that of sgd.py."""

# torch._foreach_* is what torch.optim itself is made of
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PART = 2**18
"""Numbers that a CPU updates at a time: what the passes share then stays in its cache."""


def take(lists: list[list[Tensor]], which: list[int]) -> list[list[Tensor]]:
    """Those parameters' weights, velocities, gradients and copies; no copies stay no copies."""
    return [[each[i] for i in which] if each else [] for each in lists]


def aten_step(
    weights: list[Tensor],
    velocities: list[Tensor],
    grads: list[Tensor],
    copies: list[Tensor],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """In torch's own ops; on a CPU part by part, unless it is compiled, which joins the passes."""
    if weights and weights[0].device.type == "cpu" and not torch.compiler.is_compiling():
        lists = [list(weights), list(velocities), list(grads), list(copies)]
        for i in range(len(weights)):
            parameter = [x for each in take(lists, [i]) for x in each]
            for w, v, g, *c in _parts(parameter):
                _pass([w], [v], [g], c, lr, momentum, weight_decay)
    else:
        _pass(weights, velocities, grads, copies, lr, momentum, weight_decay)


def _parts(parameter: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The same `PART` elements of each tensor, one part after the other."""
    if parameter[0].numel() <= PART or not share_a_dense_layout(*parameter):
        return iter([tuple(parameter)])
    flat = [x.as_strided((x.numel(),), (1,)) for x in parameter]
    return zip(*(x.split(PART) for x in flat), strict=True)


def _pass(
    weights: list[Tensor],
    velocities: list[Tensor],
    grads: list[Tensor],
    copies: list[Tensor],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    pull: Any = [g.to(w.dtype) for g, w in zip(grads, weights, strict=True)]
    if weight_decay:
        pull = torch._foreach_add(pull, weights, alpha=weight_decay)
    pull = torch._foreach_mul(pull, lr)
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_sub_(velocities, pull)
    torch._foreach_add_(weights, velocities)
    if copies:
        torch._foreach_copy_(copies, weights)


def share_a_dense_layout(*tensors: Tensor) -> bool:
    """Whether each element stands at the same place in all, and the places leave no gap."""
    first, *others = [_steps(x) for x in tensors]
    expected = 1
    for step, size in sorted(first):
        if step != expected:
            return False
        expected *= size
    return all(other == first for other in others)


def _steps(x: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions in which there is a step to take."""
    return [(step, size) for step, size in zip(x.stride(), x.shape, strict=True) if size != 1]
