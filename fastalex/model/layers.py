"""The layers of 2012 that torch.nn does not have.

For `fastalex.model`'s tables and for anyone's own network; each stands where its torch.nn parent
would, and has its parent's parameters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastalex import kernels


class WholeWindowConv2d(nn.Conv2d):
    """Conv2d that pads zeros on the right and bottom until its last window is whole.

    (B, C, H, W) -> (B, O, 1 + ceil((H - kernel) / stride), 1 + ceil((W - kernel) / stride)).
    Source: the 2012 code, where 224 pixels give 1 + ceil((224 - 11) / 4) = 55 windows, over 227
    columns of which the last 3 are zero. An image that fits (227) is not padded.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(self.padded(input))

    def padded(self, input: torch.Tensor) -> torch.Tensor:
        """What the windows of an unpadded convolution then cover exactly."""
        bottom = (self.kernel_size[0] - input.shape[-2]) % self.stride[0]
        right = (self.kernel_size[1] - input.shape[-1]) % self.stride[1]
        fits = isinstance(bottom, int) and not bottom and not right  # a tracer's sizes may not
        return input if fits else F.pad(input, (0, right, 0, bottom))


class LocalResponseNorm(nn.LocalResponseNorm):
    """torch.nn.LocalResponseNorm whose windows stop at the edges of `groups` towers.

    (B, C, ...) in its own dtype and layout. alpha is divided by `size`, as in torch: the paper as
    printed, where 1e-4 stands before the sum, is alpha=5e-4 for a window of 5.
    Raises: what `fastalex.kernels.local_response_norm` raises.
    """

    groups: int = 1

    def __init__(
        self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, groups: int = 1
    ) -> None:
        super().__init__(size, alpha, beta, k)
        self.groups = groups

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return kernels.local_response_norm(
            input, self.size, self.alpha, self.beta, self.k, groups=self.groups
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d by `fastalex.kernels.max_pool2d`: same arguments, answer and errors."""

    def forward(self, input: torch.Tensor) -> Any:
        if self.ceil_mode or self.return_indices or self.dilation not in (1, (1, 1)):
            return super().forward(input)
        return kernels.max_pool2d(input, self.kernel_size, self.stride, self.padding)


class SpatialResponseNorm(nn.Module):
    """Response normalization within a map: x / (1 + alpha / size^2 * sum of x^2 nearby)^beta.

    (B, C, H, W) in its own dtype; nearby are the size x size pixels around, of the same map, zero
    beyond its border; the sum is divided by size^2 there, too. Source: the 2012 code's "rnorm"
    layer (size 5, scale .001, pow .75), which the paper does not mention.
    Raises:
        ValueError: `size` is even or below 1, so that no pixel is its middle.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3, beta: float = 0.75) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"SpatialResponseNorm: `size` must be odd and positive, got {size}")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _spatial_response_norm(input, self.size, self.alpha, self.beta)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}"


@torch.fx.wrap  # torch.fx sees one function
def _spatial_response_norm(
    input: torch.Tensor, size: int, alpha: float, beta: float
) -> torch.Tensor:
    wide = input if input.dtype == torch.float64 else input.float()
    nearby = F.avg_pool2d(wide * wide, size, stride=1, padding=size // 2)
    return (wide * (1 + alpha * nearby).pow(-beta)).to(input.dtype)


class UnscaledDropout(nn.Dropout):
    """The paper's dropout: zeros with probability `p` in training, outputs times 1 - p at test.

    Any shape, dtype and layout. torch.nn.Dropout scales what survives by 1 / (1 - p) in training
    instead, and nothing at test: the same function on average, but activations, gradients and
    trained weights differ by that factor. Source: paper, section 4.2.
    Raises:
        ValueError: `p` outside 0..1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            return input * torch.empty_like(input).bernoulli_(1 - self.p)
        return input * (1 - self.p)
