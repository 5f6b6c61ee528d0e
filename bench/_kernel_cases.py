"""The cases: every op at the shapes of the paper's network and torchvision's.

At the batches of `_kernel_layers.py`, which makes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from _kernel_layers import BATCHES, conv, dropout, images, linear, norm, pool, sgd
from _kernel_work import Work


@dataclass(frozen=True)
class Case:
    """One op at one shape; `build` makes the operands, on the device, when the turn comes."""

    network: str
    layer: str
    batch: int
    passes: tuple[str, ...]
    build: Callable[[int], Work]

    @property
    def name(self) -> str:
        return "-".join([self.network, self.layer, *([str(self.batch)] if self.batch else [])])


@lru_cache(maxsize=1)
def work_of(case: Case) -> Work:
    """Built once for all passes of a case; the operands of the one before are let go."""
    torch.manual_seed(0)
    return case.build(case.batch)


BOTH = ("forward", "backward")
ALL = ("forward", "input-gradient", "weight-gradient")
FIRST = ("forward", "weight-gradient")

# network, layer, passes, how
_LAYERS: list[tuple[str, str, tuple[str, ...], Callable[[int], Work]]] = [
    ("paper", "norm1+pool1", BOTH, partial(norm, 96, 55, 2, True, False)),
    ("paper", "norm2+pool2", BOTH, partial(norm, 256, 27, 2, True, False)),
    ("paper", "relu+norm1+pool1", BOTH, partial(norm, 96, 55, 2, True, True)),
    ("paper", "relu+norm2+pool2", BOTH, partial(norm, 256, 27, 2, True, True)),
    ("paper", "norm1", BOTH, partial(norm, 96, 55, 2, False, False)),
    ("paper", "norm2", BOTH, partial(norm, 256, 27, 2, False, False)),
    ("paper", "pool1", BOTH, partial(pool, 96, 55)),
    ("paper", "pool2", BOTH, partial(pool, 256, 27)),
    ("both", "pool5", BOTH, partial(pool, 256, 13)),
    ("torchvision", "pool1", BOTH, partial(pool, 64, 55)),
    ("torchvision", "pool2", BOTH, partial(pool, 192, 27)),
    ("paper", "conv1", FIRST, partial(conv, 3, 227, 96, 11, 4, 0, 1)),
    ("paper", "conv1-in-blocks", FIRST, partial(conv, 48, 57, 96, 3, 1, 0, 1)),
    ("paper", "conv2", ALL, partial(conv, 96, 27, 256, 5, 1, 2, 2)),
    ("paper", "conv3", ALL, partial(conv, 256, 13, 384, 3, 1, 1, 1)),
    ("paper", "conv4", ALL, partial(conv, 384, 13, 384, 3, 1, 1, 2)),
    ("paper", "conv5", ALL, partial(conv, 384, 13, 256, 3, 1, 1, 2)),
    ("torchvision", "conv1", FIRST, partial(conv, 3, 224, 64, 11, 4, 2, 1)),
    ("torchvision", "conv2", ALL, partial(conv, 64, 27, 192, 5, 1, 2, 1)),
    ("torchvision", "conv3", ALL, partial(conv, 192, 13, 384, 3, 1, 1, 1)),
    ("torchvision", "conv4", ALL, partial(conv, 384, 13, 256, 3, 1, 1, 1)),
    ("torchvision", "conv5", ALL, partial(conv, 256, 13, 256, 3, 1, 1, 1)),
    ("both", "fc6", ALL, partial(linear, 9216, 4096)),
    ("both", "fc7", ALL, partial(linear, 4096, 4096)),
    ("both", "fc8", ALL, partial(linear, 4096, 1000)),
    ("paper", "relu+dropout", BOTH, partial(dropout, False, False)),
    ("paper", "relu+keyed-dropout", BOTH, partial(dropout, False, True)),
    ("torchvision", "relu+dropout", BOTH, partial(dropout, True, False)),
    ("both", "images", ("forward",), partial(images, 224, 1, (0, 0))),
    ("both", "images-in-blocks", ("forward",), partial(images, 224, 4, (0, 4))),
]
_STEPS: list[tuple[str, str, tuple[str, ...], Callable[[int], Work]]] = [
    ("paper", "sgd", ("step",), partial(sgd, "paper", False)),
    ("paper", "sgd-halves", ("step",), partial(sgd, "paper", True)),
    ("torchvision", "sgd", ("step",), partial(sgd, "torchvision", False)),
]

CASES = [
    Case(network, layer, batch, passes, build)
    for layers, batches in ((_LAYERS, BATCHES), (_STEPS, (0,)))
    for network, layer, passes, build in layers
    for batch in batches
]
