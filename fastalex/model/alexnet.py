"""AlexNet: builds a variant's table into modules.

For anyone: `fastalex.AlexNet` stands in for torchvision.models.AlexNet. The networks themselves,
with their sources, are `fastalex.model.variants`.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from fastalex.model import variants
from fastalex.model.fused import FusedSequential
from fastalex.model.layers import (
    LocalResponseNorm,
    SpatialResponseNorm,
    UnscaledDropout,
    WholeWindowConv2d,
)
from fastalex.model.variants import INITIALIZATIONS, VARIANTS, Layer, Variant


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky, Sutskever, Hinton 2012): (B, 3, H, W) images to (B, num_classes) logits.

    Images come as `model.variant.input` says: size, mean, scale and colour order. Other sizes work,
    from 67 pixels a side: the average pool brings any to the 6 x 6 that fc6 wants. Channels
    [0 : C / 2] of a layer of two towers are tower A.

    Args:
        num_classes: outputs of the last layer, `classifier[6]` in every variant.
        dropout: probability of zeroing an output (torchvision: an input) of fc6 and fc7.
        variant: a name in `fastalex.model.VARIANTS`: "paper", "original" (the 2012 code as it was
            trained), "caffe", "caffenet", "torchvision", "single" or "batchnorm".
        init: how the weights start: None for the variant's own way, the name of the variant whose
            way to take, or "he" (normal, He et al. 2015, biases 0; for inputs of unit variance).
        width: multiplies the channels and units of every layer but the last, each rounded to an
            even number so that two towers share it: .25 gives 24, 64, 96, 96, 64, 1024, 1024.
    Raises:
        ValueError: no such variant or init; num_classes < 1; dropout outside 0..1; width not above
            0 or not finite.

    Trainable parameters at width 1 and 1000 classes: 60,965,224 for two towers, 62,378,344 for
    "single", 61,100,840 for "torchvision".
    """

    def __init__(
        self,
        num_classes: int = 1000,
        dropout: float = 0.5,
        *,
        variant: str = "paper",
        init: str | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        _check(num_classes, dropout, variant, init, width)
        self.variant: Variant = VARIANTS[variant]
        self.width = width
        build = _Builder(num_classes, dropout, width)
        self.features = build.sequential(self.variant.features)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        build.channels *= 6 * 6
        self.classifier = build.sequential(self.variant.classifier)
        initialize = self.variant.init if init is None else INITIALIZATIONS[init]
        layers = dict(self.named_layers())
        initialize({n: m for n, m in layers.items() if isinstance(m, nn.Conv2d | nn.Linear)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))

    def named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers with weights by the paper's names: conv1 to conv5, fc6, fc7, fc8, in order.

        fc8 is whatever stands at `classifier[6]`. Normalization layers are not among them:
        BatchNorm's scales and shifts are the parameters that are in no named layer.
        """
        number = 0
        for part in ("features", "classifier"):
            for layer, module in zip(getattr(self.variant, part), getattr(self, part), strict=True):
                if isinstance(layer, variants.Conv | variants.Linear):
                    number += 1
                    kind = "conv" if isinstance(layer, variants.Conv) else "fc"
                    yield f"{kind}{number}", module


class _Builder:
    """Turns rows of a table into modules, carrying the channels from each to the next."""

    def __init__(self, num_classes: int, dropout: float, width: float) -> None:
        self.num_classes, self.dropout, self.width = num_classes, dropout, width
        self.channels = 3

    def sequential(self, layers: Iterable[Layer]) -> nn.Sequential:
        return FusedSequential(*map(self.module, layers))

    def module(self, layer: Layer) -> nn.Module:
        match layer:
            case variants.Conv():
                return self.convolution(layer)
            case variants.Linear(units):
                seen = self.channels
                self.channels = self.num_classes if units is None else self.scaled(units)
                return nn.Linear(seen, self.channels)
            case variants.Relu(inplace):
                return nn.ReLU(inplace=inplace)
            case variants.Lrn(alpha, k, groups):
                return LocalResponseNorm(5, alpha, 0.75, k, groups=groups)
            case variants.SpatialNorm():
                return SpatialResponseNorm(5, 1e-3, 0.75)
            case variants.BatchNorm():
                return nn.BatchNorm2d(self.channels)
            case variants.Pool():
                return nn.MaxPool2d(3, stride=2)
            case variants.Dropout(inverted):
                return nn.Dropout(self.dropout) if inverted else UnscaledDropout(self.dropout)

    def convolution(self, layer: variants.Conv) -> nn.Conv2d:
        seen, self.channels = self.channels, self.scaled(layer.channels)
        if layer.whole_windows:
            return WholeWindowConv2d(
                seen, self.channels, layer.kernel, layer.stride, bias=layer.bias
            )
        return nn.Conv2d(
            seen, self.channels, layer.kernel, layer.stride, layer.padding,
            groups=layer.groups, bias=layer.bias,
        )  # fmt: skip

    def scaled(self, count: int) -> int:
        return scaled(count, self.width)


def scaled(count: int, width: float) -> int:
    """Channels or units of a layer that has `count` at width 1."""
    return max(2, 2 * round(count * width / 2))


def _check(num_classes: int, dropout: float, variant: str, init: str | None, width: float) -> None:
    if variant not in VARIANTS:
        raise ValueError(
            f"AlexNet: `variant` must be one of {', '.join(VARIANTS)}; got {variant!r}"
        )
    if init is not None and init not in INITIALIZATIONS:
        raise ValueError(
            f"AlexNet: `init` must be None (the variant's own) or one of "
            f"{', '.join(INITIALIZATIONS)}; got {init!r}"
        )
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(
            f"AlexNet: `num_classes` must be an integer of 1 or more, got {num_classes}"
        )
    if not 0 <= dropout <= 1:
        raise ValueError(f"AlexNet: `dropout` must be a probability, 0 to 1, got {dropout}")
    if not 0 < width < float("inf"):
        raise ValueError(
            f"AlexNet: `width` must be a finite number above 0 (1 is the variant's own width), "
            f"got {width}"
        )
