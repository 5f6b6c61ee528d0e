"""Overlapping max-pooling (Krizhevsky et al. 2012, section 3.4).

    y[p] = max over q in the window of x[stride * p - padding + q]
    dx   = dy, sent to each window's maximum and summed where windows overlap

Shapes  x: (B, C, H, W) or (C, H, W). Windows that do not fit are left out (floor).
Ties    the gradient goes to the first maximum in scan order. A NaN is its window's maximum.
"""

import torch
import torch.nn.functional as F


def max_pool2d(
    input: torch.Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> torch.Tensor:
    """`torch.nn.functional.max_pool2d` (floor mode): the same answer, gradient and errors.

    Args:
        input: (B, C, H, W) or (C, H, W), of any dtype and layout that max_pool2d takes.
        kernel_size: side or (height, width) of the window.
        stride: from one window to the next; None for `kernel_size`.
        padding: rows and columns of -inf on every side; at most half of `kernel_size`.
    Returns: (B, C, H', W') or (C, H', W'), H' = (H + 2 * padding - kernel_size) // stride + 1.
    Raises: what torch's max_pool2d raises.
    """
    return F.max_pool2d(input, kernel_size, stride, padding)
