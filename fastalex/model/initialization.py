"""How a network's weights and biases start; `fastalex.model.variants` says which network how.

Each class here is called with the freshly built layers by name, conv1 to conv5 and fc6 to fc8, and
fills them in place. Normalization layers are not among them: they keep scale 1 and shift 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

Layers = Mapping[str, nn.Conv2d | nn.Linear]


@dataclass(frozen=True)
class Normal:
    """Weights from N(0, std^2), biases constant: conv1, ..., conv5, fc6, fc7, fc8 in this order."""

    std: tuple[float, ...]
    bias: tuple[float, ...]

    def __call__(self, layers: Layers) -> None:
        for layer, std, bias in zip(layers.values(), self.std, self.bias, strict=True):
            nn.init.normal_(layer.weight, std=std)
            _fill_bias(layer, bias)


@dataclass(frozen=True)
class Kaiming:
    """Weights from N(0, 2 / fan) (He et al. 2015, arXiv 1502.01852, eq. 10 and 14), biases 0.

    fan_in keeps the variance of activations from layer to layer, fan_out that of gradients. With
    `linear_std`, the fully connected weights come from N(0, linear_std^2) instead.
    """

    mode: Literal["fan_in", "fan_out"]
    linear_std: float | None = None

    def __call__(self, layers: Layers) -> None:
        for layer in layers.values():
            if self.linear_std is not None and isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=self.linear_std)
            else:
                nn.init.kaiming_normal_(layer.weight, mode=self.mode, nonlinearity="relu")
            _fill_bias(layer, 0.0)


@dataclass(frozen=True)
class TorchDefault:
    """What torch.nn's constructors drew: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), biases too."""

    def __call__(self, layers: Layers) -> None:
        """Leave the layers as built; one draw, so a seed gives torchvision's very numbers."""


Initialization = Normal | Kaiming | TorchDefault


def _fill_bias(layer: nn.Conv2d | nn.Linear, value: float) -> None:
    if layer.bias is not None:
        nn.init.constant_(layer.bias, value)
