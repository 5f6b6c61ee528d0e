"""Convolution, bias and ReLU (Krizhevsky et al. 2012, sections 3.1 and 3.5).

    y[o, p] = max(0, b[o] + sum_{i, q} w[o, i, q] * x[i, stride * p - padding + dilation * q])

    i over the input channels of o's group, q over the kernel

Shapes  x: (B, C, H, W) or (C, H, W); w: (O, C / groups, KH, KW); b: (O,).
Maths   the sum is torch's convolution; ReLU overwrites its result, so that no second copy is made.
"""

import torch
import torch.nn.functional as F


def conv2d_relu(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.relu(torch.nn.functional.conv2d(...))`: the same arguments, answer and errors.

    Args:
        input: (B, C, H, W) or (C, H, W), of any dtype and layout that conv2d takes.
        weight: (O, C / groups, KH, KW); output channels [g * O / groups : (g + 1) * O / groups]
            see input channels [g * C / groups : (g + 1) * C / groups] alone.
        bias: (O,), or None.
        stride, padding, dilation, groups: as in conv2d; padding may be "valid" or "same".
    Returns: (B, O, H', W') or (O, H', W'), nowhere below zero; NaN stays NaN.
    Raises: what conv2d raises.
    """
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups).relu_()
