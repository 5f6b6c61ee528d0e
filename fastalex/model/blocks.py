"""Images in blocks: a first convolution of stride s as one of stride 1 on s * s times the channels.

For `fastalex.train`, whose input on a GPU is written so (`kernels.images`, space_to_depth), and for
`FusedSequential`, which then runs the first layer so. `fastalex.kernels._space_to_depth` has the
formula; the sums are the same. Three channels leave a matrix unit idle, 48 do not.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastalex.kernels._conv2d_kernels import Window
from fastalex.kernels._space_to_depth import folded_weights, folded_window, folds
from fastalex.model.layers import WholeWindowConv2d


@dataclass(frozen=True, slots=True)
class Blocks:
    """How images become blocks: the arguments of `fastalex.kernels.images`."""

    space_to_depth: int
    padding: tuple[int, int]

    def of(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3 * s * s, H2, W2) in channels_last; for images that are there."""
        s = self.space_to_depth
        padded = F.pad(images, 2 * self.padding).permute(0, 2, 3, 1)
        rows = padded.unflatten(2, (-1, s)).unflatten(1, (-1, s))
        return rows.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)


def take_blocks(conv: nn.Module, size: int) -> Blocks | None:
    """Let `conv` take images of `size` pixels a side in blocks, too, within a FusedSequential.

    Returns: how to make them; None, and nothing changes, where the convolution does not go so.
    """
    if type(conv) not in (nn.Conv2d, WholeWindowConv2d) or _is_hidden(conv):
        return None
    window = _window(conv)
    if not folds(conv.in_channels, window, conv.groups):  # pyright: ignore[reportArgumentType]
        return None
    (k, _), (s, _), (before, _), _ = window
    whole = isinstance(conv, WholeWindowConv2d)
    after = -(size - k) % s if whole else before
    outputs = (size + before + after - k) // s + 1
    after = s * (outputs + folded_window(window).kernel[0] - 1) - size - before
    if len(set(window.kernel)) > 1 or len(set(window.padding)) > 1 or after < 0:
        return None
    conv.takes_blocks = True  # pyright: ignore[reportArgumentType]
    return Blocks(s, (before, after))


def is_in_blocks(conv: Any, x: Tensor) -> bool:
    """Whether `x` is what `take_blocks` has made `conv` ready for."""
    return getattr(conv, "takes_blocks", False) and x.shape[1] != conv.in_channels


def block_weight(conv: Any) -> Tensor:
    """The convolution's weight for blocks, at stride 1 and without padding; differentiable."""
    return folded_weights(conv.weight, _window(conv))


def _window(conv: Any) -> Window:
    return Window(conv.kernel_size, conv.stride, conv.padding, conv.dilation)


def _is_hidden(conv: Any) -> bool:
    return isinstance(conv.padding, str) or conv.padding_mode != "zeros"
