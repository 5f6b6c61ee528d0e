"""The least time a network can take: the sum over its passes of max(arithmetic, traffic).

Each pass of each layer moves its operands and results once, at the speed of a large copy, or does
its multiplications at the speed of a large matrix product, whichever takes longer; both speeds are
measured in the same run. For bench_step.py and bench_inference.py.

    convolution, matrix   2 FLOPs a multiplication. Forward reads x and W and writes y; the input
                          gradient reads dy and W and writes dx; the weight gradient reads x and dy
                          and writes dW. conv1 has no input gradient. Bias and ReLU are free.
    [norm +] pool         forward reads x, writes y and the place of each maximum, a byte; backward
                          reads x (with a norm), dy and the places, and writes dx
    optimizer             weight, velocity and gradient read, weight and velocity written, in
                          float32; in half precision a 2-byte gradient, and a working copy written
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from _peers import TowerNorm, peer_of
from torch import nn

from fastalex import AlexNet


@dataclass(frozen=True)
class Cost:
    layer: str
    which: str
    """forward, input gradient, weight gradient, backward or update."""
    moved: int
    """Bytes."""
    flops: int

    def seconds(self, copy: float, matrix: float) -> float:
        """At `copy` bytes and `matrix` FLOPs a second."""
        return max(self.moved / copy, self.flops / matrix)


def costs(
    variant: str, width: float, classes: int, batch: int, element: int, training: bool
) -> list[Cost]:
    """The passes of one training step or one inference on images of 224 pixels.

    Args:
        element: bytes of an activation and of a working weight: 2 or 4.
    """
    with torch.device("meta"):
        model = AlexNet(classes, variant=variant, width=width)
        peer = peer_of(model)
        calls = _calls(peer, torch.empty(batch, 3, 224, 224))
    found, convs = [], 0
    for number, (module, x, y) in enumerate(calls):
        if isinstance(module, nn.Conv2d | nn.Linear):
            convs += 1
            name = f"{'conv' if isinstance(module, nn.Conv2d) else 'fc'}{convs}"
            found += _matrix(name, module, x, y, element, training, first=convs == 1)
        elif isinstance(module, nn.MaxPool2d):
            normed = isinstance(calls[number - 1][0], TowerNorm)
            name = f"norm{convs}+pool{convs}" if normed else f"pool{convs}"
            found += _pool(name, x, y, element, training, normed)
    if training:
        weights = sum(p.numel() for p in model.parameters())
        found.append(Cost("optimizer", "update", 20 * weights, 0))
    return found


def seconds(found: list[Cost], copy: float, matrix: float) -> float:
    return sum(cost.seconds(copy, matrix) for cost in found)


def _calls(peer: nn.Sequential, x: torch.Tensor) -> list[tuple[nn.Module, int, int]]:
    """Each module with the sizes of its input and output."""
    calls = []
    for module in peer:
        before, x = x.numel(), module(x)
        calls.append((module, before, x.numel()))
    return [call for call in calls if not isinstance(call[0], nn.ReLU)]


def _matrix(
    name: str, module: nn.Module, x: int, y: int, element: int, training: bool, first: bool
) -> Iterator[Cost]:
    weight = module.weight
    flops = 2 * y * weight[0].numel()
    moved = element * (x + y + weight.numel())
    yield Cost(name, "forward", moved, flops)
    if training:
        if not first:
            yield Cost(name, "input gradient", moved, flops)
        yield Cost(name, "weight gradient", moved, flops)


def _pool(name: str, x: int, y: int, element: int, training: bool, normed: bool) -> Iterator[Cost]:
    places = y if training else 0
    yield Cost(name, "forward", element * (x + y) + places, 0)
    if training:
        yield Cost(name, "backward", element * (x + y + (x if normed else 0)) + places, 0)
