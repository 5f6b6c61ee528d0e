"""The networks in stock PyTorch, as people write them, for the benchmarks' peers.

Nothing of fastalex computes here. The paper's network (Krizhevsky et al. 2012) has two towers in
its groups and in its normalization; 224 pixels get three columns and rows of zeros, so that conv1's
last window is whole. torchvision's is torchvision/models/alexnet.py. `start_from` gives them the
weights of a `fastalex.AlexNet`, so that both compute the same function.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastalex import AlexNet
from fastalex.model.layers import UnscaledDropout

SIZE, ALPHA, BETA, K = 5, 5e-4, 0.75, 2.0
"""The paper's section 3.3; torch divides alpha by the size."""


class TowerNorm(nn.Module):
    """`torch.nn.functional.local_response_norm`, a tower at a time."""

    def forward(self, x: Tensor) -> Tensor:
        towers = [F.local_response_norm(t, SIZE, ALPHA, BETA, K) for t in x.chunk(2, dim=1)]
        return torch.cat(towers, dim=1)


class TunedTowerNorm(nn.Module):
    """The same by hand: no cast to float32, no three-dimensional pool, no power.

    s^-.75 is r * sqrt(r) with r = 1 / sqrt(s). Autocast, which would take 1 / sqrt to float32, is
    off inside, so that every tensor stays in its input's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([self._tower(t) for t in x.chunk(2, dim=1)], dim=1)

    def _tower(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        squares = F.pad(x * x, (0, 0, 0, 0, SIZE // 2, SIZE // 2))
        total = squares[:, :channels]
        for first in range(1, SIZE):
            total = total + squares[:, first : first + channels]
        r = torch.rsqrt(total * (ALPHA / SIZE) + K)
        return x * (r * torch.sqrt(r))


def paper(
    width: float, classes: int, dropout: float, norm: Callable[[], nn.Module] = TowerNorm
) -> nn.Sequential:
    def part(count: int) -> int:
        return 2 * round(count * width / 2)

    c1, c2, c3, c5, fc = part(96), part(256), part(384), part(256), part(4096)
    relu = nn.ReLU
    return nn.Sequential(
        nn.ZeroPad2d((0, 3, 0, 3)),
        nn.Conv2d(3, c1, 11, stride=4), relu(inplace=True), norm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c1, c2, 5, padding=2, groups=2), relu(inplace=True), norm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c2, c3, 3, padding=1), relu(inplace=True),
        nn.Conv2d(c3, c3, 3, padding=1, groups=2), relu(inplace=True),
        nn.Conv2d(c3, c5, 3, padding=1, groups=2), relu(inplace=True), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(c5 * 36, fc), relu(inplace=True), nn.Dropout(dropout),
        nn.Linear(fc, fc), relu(inplace=True), nn.Dropout(dropout),
        nn.Linear(fc, classes),
    )  # fmt: skip


def torchvision(classes: int, dropout: float) -> nn.Sequential:
    relu = nn.ReLU
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), relu(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), relu(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), relu(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), relu(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), relu(inplace=True), nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(9216, 4096), relu(inplace=True),
        nn.Dropout(dropout), nn.Linear(4096, 4096), relu(inplace=True),
        nn.Linear(4096, classes),
    )  # fmt: skip


def peer_of(ours: AlexNet, norm: Callable[[], nn.Module] = TowerNorm) -> nn.Sequential:
    """The stock network that computes what `ours` does, with its weights, on its device.

    Args:
        ours: of variant paper or torchvision.
        norm: TowerNorm or TunedTowerNorm, for the paper's.
    """
    (dropout, *_) = (m.p for m in ours.classifier if isinstance(m, nn.Dropout))
    classes = ours.classifier[6].out_features
    if ours.variant.name == "torchvision":
        peer = torchvision(classes, dropout)
    else:
        peer = paper(ours.width, classes, dropout, norm)
    return start_from(peer, ours).train(ours.training)


@torch.no_grad()
def start_from(peer: nn.Sequential, ours: AlexNet) -> nn.Sequential:
    """Gives `peer` the weights of `ours`, and its device.

    The paper's dropout does not scale what survives; torch's divides it by 1 - p. So the weights
    that read it are multiplied by 1 - p, which makes both the same function, in training and not.
    """
    peer = peer.to(next(ours.parameters()).device)
    for theirs, own in zip(peer.parameters(), ours.parameters(), strict=True):
        theirs.copy_(own)
    unscaled = [m.p for m in ours.classifier if isinstance(m, UnscaledDropout)]
    readers = [m for m in peer if isinstance(m, nn.Linear)][1:]
    for p, reader in zip(unscaled, readers, strict=False):
        reader.weight.mul_(1 - p)
    return peer
