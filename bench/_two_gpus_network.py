"""The paper's network at full width as two_gpus.py counts it: layers, segments, bytes exchanged."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from fastalex import AlexNet

CLASSES = 1000


@dataclass(frozen=True)
class Layer:
    """One image through one layer, forward."""

    name: str
    flops: int
    """Of its matrix product; 0: it only moves memory."""
    reads: int
    """Elements."""
    writes: int
    weights: int
    sees_all: bool
    """Needs both towers' channels."""


@cache
def layers() -> tuple[Layer, ...]:
    """The paper's layers that cost something, in order."""
    found: list[Layer] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        convolves = isinstance(module, nn.Conv2d)
        product = convolves or isinstance(module, nn.Linear)
        flops = 2 * module.weight.numel() * output.shape[2:].numel() if product else 0
        found.append(
            Layer(
                name=names.get(id(module), type(module).__name__),
                flops=flops,
                reads=inputs[0].numel(),
                writes=output.numel(),
                weights=sum(p.numel() for p in module.parameters()),
                sees_all=product and bool(found) and not (convolves and module.groups > 1),
            )
        )

    with torch.device("meta"):
        model = AlexNet(CLASSES)
        names = {id(module): name for name, module in model.named_layers()}
        skip = nn.ReLU | nn.Dropout  # in one pass with their neighbours
        for module in [*model.features, *model.classifier]:
            if not isinstance(module, skip):
                module.register_forward_hook(note)
        model(torch.empty(1, 3, 224, 224))
    return tuple(found)


def segments(mode: str) -> list[list[Layer]]:
    """The network between its exchanges."""
    parts: list[list[Layer]] = [[]]
    for layer in layers():
        if layer.sees_all and (mode == "towers" or layer.name.startswith("fc")):
            parts.append([])
        parts[-1].append(layer)
    return parts


def parameters(*, convolutions: bool, fully_connected: bool = True) -> int:
    return sum(
        layer.weights
        for layer in layers()
        if (fully_connected if layer.name.startswith("fc") else convolutions)
    )


def bytes_sent(mode: str, batch: int, *, half: bool, ranks: int = 2) -> int:
    """Bytes that a rank sends, and receives, in a step; a ring's share of each exchange."""
    a = 2 if half else 4
    pairs = 2 * (ranks - 1)  # forward and backward, of each of K parts
    if mode == "data":
        return pairs * a * parameters(convolutions=True) // ranks
    joins = sum(part[0].reads for part in segments(mode)[1:])
    logits = (ranks - 1) * -(-CLASSES // ranks) * a * batch
    sent = pairs * joins * a * batch // ranks + logits
    if mode == "hybrid":
        sent += (ranks - 1) * 8 * batch // ranks  # labels
        sent += pairs * 4 * parameters(convolutions=True, fully_connected=False) // ranks
    return sent
