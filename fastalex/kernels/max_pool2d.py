"""Overlapping max-pooling (Krizhevsky et al. 2012, section 3.4).

    y[p] = max over q in the window of x[stride * p - padding + q]
    dx   = dy, sent to each window's maximum and summed where windows overlap

Shapes  x: (B, C, H, W) or (C, H, W). Windows that do not fit are left out (floor).
Ties    the gradient goes to the first maximum in scan order. A NaN is its window's maximum, the
        last one if there are several.
Dtypes  loads and stores in x.dtype; the backward's sums in float32.
Cost    bytes moved in 16 bits: forward 2 a number of x and 2 + 1 of y, the 1 for the maximum's
        place in its window; backward 2 + 1 a number of y and 2 of x. AlexNet's 3x3 with stride 2:
        2.7 bytes a number of x each way. No atomics.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastalex.kernels._choice import choose
from fastalex.kernels._launch import (
    channels_last,
    is_channels_last,
    pair,
    public,
    route,
    wrap_triton,
)
from fastalex.kernels._max_pool import max_pool2d_bwd_kernel, max_pool2d_fwd_kernel
from fastalex.kernels._triton import triton

Pair = tuple[int, int]
BLOCK, MOST_PLACES = 128, 25
"""Loops over windows and cells are unrolled: larger ones make programs too long to be quick."""


@public
def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    *,
    relu: bool = False,
) -> Tensor:
    """`torch.nn.functional.max_pool2d` (floor mode): the same answer, gradient and errors.

    Args:
        input: (B, C, H, W) or (C, H, W), of any dtype and layout that max_pool2d takes.
        kernel_size: side or (height, width) of the window.
        stride: from one window to the next; None for `kernel_size`.
        padding: rows and columns of -inf on every side; at most half of `kernel_size`.
        relu: of relu(input). The backward then zeroes the gradient where input <= 0.
    Returns: (B, C, H', W') or (C, H', W'), H' = (H + 2 * padding - kernel_size) // stride + 1.
    Raises: what torch's max_pool2d raises.
    """
    pool = pairs(kernel_size, stride, padding)
    mode = route("max_pool2d", input, covered(input, pool))
    if mode == "aten":
        return F.max_pool2d(F.relu(input) if relu else input, kernel_size, stride, padding)
    assert pool is not None
    if input.dim() == 3:
        return _max_pool2d(input[None], pool, relu, mode)[0]
    return _max_pool2d(input, pool, relu, mode)


def pairs(kernel_size: Any, stride: Any, padding: Any) -> tuple[Pair, Pair, Pair] | None:
    """The three in full; None where they are not whole numbers, or pairs of them."""
    kernel = pair(kernel_size)
    step = kernel if stride is None else pair(stride)
    border = pair(padding)
    return None if kernel is None or step is None or border is None else (kernel, step, border)


def covered(input: Tensor, pool: tuple[Pair, Pair, Pair] | None) -> bool:
    """Windows of up to 5x5, say; anything that torch would refuse is torch's to refuse."""
    if pool is None or input.dim() not in (3, 4):
        return False
    kernel, stride, padding = pool
    return (
        max(kernel[0] * kernel[1], stride[0] * stride[1]) <= MOST_PLACES
        and all(0 <= 2 * p <= k and s > 0 for k, s, p in zip(*pool, strict=True))
        and all(n + 2 * p >= k for n, k, p in zip(input.shape[-2:], kernel, padding, strict=True))
    )


def _max_pool2d(x: Tensor, pool: tuple[Pair, Pair, Pair], relu: bool, mode: str) -> Tensor:
    sizes = [n for both in pool for n in both]
    trained = torch.is_grad_enabled() and x.requires_grad
    return _MaxPool.apply(x, sizes, relu, trained, mode)  # untrained, too: it refuses a forward AD


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, sizes, relu, trained, mode):
        y, places = _max_pool2d_op(x, sizes, relu, trained, mode)
        by_aten = places.dtype == torch.int64
        ctx.save_for_backward(places, y <= 0 if by_aten and relu else None)
        ctx.settings = list(x.shape), is_channels_last(x), sizes
        return y

    @staticmethod
    def backward(ctx, dy):
        return _max_pool2d_backward_op(dy, *ctx.saved_tensors, *ctx.settings), *[None] * 4


def _launch_forward(x: Tensor, y: Tensor, places: Tensor, sizes: list[int], relu: bool) -> None:
    (b, c, h, w), (oh, ow) = x.shape, y.shape[2:]
    octets = triton.cdiv(c, 8) * oh * ow
    wrap_triton(max_pool2d_fwd_kernel)[(b * triton.cdiv(octets, BLOCK),)](
        x, y, places, h, w, oh, ow, c, *sizes, octets, relu, places.numel() > 0, BLOCK
    )


def _launch_backward(dy: Tensor, places: Tensor, dx: Tensor, sizes: list[int]) -> None:
    (b, c, h, w), (oh, ow) = dx.shape, dy.shape[2:]
    octets = (
        triton.cdiv(c, 8)
        * triton.cdiv(h + sizes[4], sizes[2])
        * triton.cdiv(w + sizes[5], sizes[3])
    )
    wrap_triton(max_pool2d_bwd_kernel)[(b * triton.cdiv(octets, BLOCK),)](
        dy, places, dx, h, w, oh, ow, c, *sizes, octets, BLOCK
    )


@torch.library.triton_op("fastalex::max_pool2d", mutates_args={})
def _max_pool2d_op(
    x: Tensor, sizes: list[int], relu: bool, trained: bool, mode: str
) -> tuple[Tensor, Tensor]:
    """-> y, the places of the maxima: int8 within the window, or int64, ATen's own; none untrained.

    sizes: height and width of window, stride and padding.
    """

    def trial(name, x):
        y, places = _max_pool2d_op(x, sizes, relu, trained, name)
        if trained:
            closed = y <= 0 if relu and name == "aten" else None
            _max_pool2d_backward_op(y, places, closed, list(x.shape), is_channels_last(x), sizes)

    settings = *sizes, relu
    direction = "both" if trained else "forward"
    if choose("max_pool2d", direction, mode, ("aten", "triton"), trial, (x,), settings) == "aten":
        return aten_max_pool2d(torch.relu(x) if relu else x, sizes, trained, is_channels_last(x))
    b, c = x.shape[:2]
    oh, ow = (
        (n + 2 * sizes[i + 4] - sizes[i]) // sizes[i + 2] + 1 for i, n in enumerate(x.shape[2:])
    )
    y = torch.empty(
        (b, c, oh, ow), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    places = torch.empty_like(y, dtype=torch.int8) if trained else y.new_empty(0, dtype=torch.int8)
    _launch_forward(channels_last(x), y, places, sizes, relu)
    return in_layout(y, is_channels_last(x)), places


@torch.library.triton_op("fastalex::max_pool2d_backward", mutates_args={})
def _max_pool2d_backward_op(
    dy: Tensor, places: Tensor, closed: Tensor | None, shape: list[int], like_channels_last: bool,
    sizes: list[int],
) -> Tensor:  # fmt: skip
    """`closed`: where ATen chose the places and the ReLU in front lets no gradient through."""
    if places.dtype == torch.int64:
        layout = torch.channels_last if like_channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=layout)
        dy = dy if closed is None else torch.where(closed, 0.0, dy).to(dy.dtype)
        return aten_max_pool2d_backward(dy, x, sizes, places)
    dx = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
    _launch_backward(channels_last(dy), places, dx, sizes)
    return in_layout(dx, like_channels_last)


def in_layout(y: Tensor, like_channels_last: bool) -> Tensor:
    """What a kernel wrote, channels_last, as the op returns it."""
    return y if like_channels_last else y.clone(memory_format=torch.contiguous_format)


def aten_max_pool2d(
    x: Tensor, sizes: list[int], trained: bool, like_channels_last: bool
) -> tuple[Tensor, Tensor]:
    pool = sizes[:2], sizes[2:4], sizes[4:]
    layout = torch.channels_last if like_channels_last else torch.contiguous_format
    if not trained:
        y, places = F.max_pool2d(x, *pool), torch.empty(0, dtype=torch.int64, device=x.device)
        return y.contiguous(memory_format=layout), places
    y, places = torch.ops.aten.max_pool2d_with_indices(x, *pool)
    return y.contiguous(memory_format=layout), places.contiguous(memory_format=layout)


def aten_max_pool2d_backward(dy: Tensor, x: Tensor, sizes: list[int], places: Tensor) -> Tensor:
    """x: for its shape and layout."""
    return torch.ops.aten.max_pool2d_with_indices_backward(
        dy, x, sizes[:2], sizes[2:4], sizes[4:], [1, 1], False, places
    )
