"""The same functions in stock PyTorch, as one writes them, for the kernel benchmarks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def lrn(x: Tensor, relu: bool, groups: int) -> Tensor:
    """The paper's normalization, a tower at a time."""
    x = F.relu(x) if relu else x
    towers = x.chunk(groups, dim=1)
    normed = [F.local_response_norm(t, 5, 5e-4, 0.75, 2.0) for t in towers]
    return torch.cat(normed, dim=1) if groups > 1 else normed[0]


def lrn_pool(x: Tensor, relu: bool, groups: int) -> Tensor:
    return F.max_pool2d(lrn(x, relu, groups), 3, 2)


def conv_relu(x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    return F.conv2d(x, w, b, stride, padding, groups=groups).relu_()


def conv_relu_cudnn(
    x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int, groups: int
) -> Tensor:
    """cuDNN's own fusion, which has no backward."""
    pairs = [(stride, stride), (padding, padding), (1, 1)]
    return torch.cudnn_convolution_relu(x.detach(), w.detach(), b.detach(), *pairs, groups)


def conv_relu_split(
    x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int, groups: int
) -> Tensor:
    """Each group a convolution of its own."""
    parts = zip(x.chunk(groups, 1), w.chunk(groups), b.chunk(groups), strict=True)
    return torch.cat([F.conv2d(*part, stride, padding) for part in parts], dim=1).relu_()


def momentum_step(
    update: Callable[..., None],
    lr: Tensor,
    weights: list[Tensor],
    velocities: list[Tensor],
    grads: list[Tensor],
    copies: list[Tensor] = [],  # noqa: B006 - never written
) -> None:
    update(weights, velocities, grads, lr, 0.9, 5e-4, copies=copies)


def momentum_step_by_hand(
    lr: Tensor,
    weights: list[Tensor],
    velocities: list[Tensor],
    grads: list[Tensor],
    copies: list[Tensor] = [],  # noqa: B006
) -> list[Tensor]:
    both = zip(weights, velocities, grads, strict=True)
    return [w + 0.9 * v - lr * (g.float() + 5e-4 * w) for w, v, g in both]


def fused_sgd() -> Callable[..., None]:
    """torch.optim.SGD(fused=True): another formula (the rate outside), of the same traffic."""
    made: list[torch.optim.Optimizer] = []

    def step(weights: list[Tensor], velocities: list[Tensor], grads: list[Tensor]) -> None:
        if not made:
            for w, g in zip(weights, grads, strict=True):
                w.grad = g
            made.append(
                torch.optim.SGD(weights, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
            )
        made[0].step()

    return step
