"""Convolution, bias and ReLU (Krizhevsky et al. 2012, sections 3.1 and 3.5).

    y[o, p]     = max(0, b[o] + sum_{i, q} w[o, i, q] * x[i, at(p, q)])
    g[o, p]     = where(y <= 0, 0, dy)
    dx[i, r]    = sum_{o, p, q: at(p, q) = r} w[o, i, q] * g[o, p]
    dw[o, i, q] = sum_p g[o, p] * x[i, at(p, q)],    db[o] = sum_p g[o, p]

    at(p, q) = stride * p - padding + dilation * q; i over the input channels of o's group, q over
    the kernel, p over the output's pixels; x is zero outside

Shapes  x: (B, C, H, W) or (C, H, W); w: (O, C / groups, KH, KW); b: (O,).
Dtypes  operands and results in x.dtype, sums in float32; float32 as torch's TF32 switch says.
Cost    2 * B * H' * W' * numel(w) floating-point operations forward, as many for each of dx and dw.
        The kernels and their tiles stand in the `_conv2d` files beside this one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastalex.kernels._conv2d_ops import _conv2d_relu, _conv2d_relu_backward
from fastalex.kernels._launch import DTYPES, autocast_dtype, cast, pair, public, route

Pair = tuple[int, int]


@public
def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    mask_gradient: bool = True,
) -> Tensor:
    """`torch.relu(torch.nn.functional.conv2d(...))`: the same arguments, answer and errors.

    Args:
        input: (B, C, H, W) or (C, H, W), of any dtype and layout that conv2d takes.
        weight: (O, C / groups, KH, KW); output channels [g * O / groups : (g + 1) * O / groups]
            see input channels [g * C / groups : (g + 1) * C / groups] alone.
        bias: (O,), or None.
        stride, padding, dilation, groups: as in conv2d; padding may be "valid" or "same".
        mask_gradient: False promises that the gradient which comes back is zero wherever the output
            is not positive, as from an op called with `relu=True`; the output is then not kept.
    Returns: (B, O, H', W') or (O, H', W'), nowhere below zero; NaN stays NaN.
    Raises: what conv2d raises.
    """
    pairs = _pairs(weight, stride, padding, dilation)
    dtype = autocast_dtype(input)
    covered = pairs is not None and _covered(input, weight, bias, *pairs, groups, dtype)
    mode = route("conv2d_relu", input, covered)
    if mode == "aten" or pairs is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups).relu_()
    if dtype is not None:
        input, weight = cast(input, dtype), cast(weight, dtype)
        bias = None if bias is None else cast(bias, dtype)
    return _Conv2dReLU.apply(input, weight, bias, *pairs, groups, mask_gradient, mode)


class _Conv2dReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, stride, padding, dilation, groups, mask_gradient, mode):
        y = _conv2d_relu(x, w, bias, stride, padding, dilation, groups, mode)
        ctx.save_for_backward(y if mask_gradient else None, x, w)
        ctx.arguments = stride, padding, dilation, groups, mode
        return y

    @staticmethod
    def backward(ctx, dy):
        asked = list(ctx.needs_input_grad[:3])
        y, x, w = ctx.saved_tensors
        stride, padding, dilation, groups, mode = ctx.arguments
        gradients = _conv2d_relu_backward(
            dy, y, x, w, stride, padding, dilation, groups, asked, mode
        )
        found = [d if wanted else None for d, wanted in zip(gradients, asked, strict=True)]
        return *found, *[None] * 6


def _pairs(
    weight: Tensor, stride: Any, padding: Any, dilation: Any
) -> tuple[Pair, Pair, Pair] | None:
    """Rows' and columns' (stride, padding, dilation), or None where torch is to answer."""
    strides, dilations = pair(stride), pair(dilation)
    if strides is None or dilations is None or weight.dim() != 4:
        return None
    if padding == "same":
        reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]
        if strides != (1, 1) or any(r % 2 for r in reach):
            return None
        return strides, (reach[0] // 2, reach[1] // 2), dilations
    paddings = (0, 0) if padding == "valid" else pair(padding)
    return None if paddings is None else (strides, paddings, dilations)


def _covered(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Pair, padding: Pair,
    dilation: Pair, groups: int, autocast: torch.dtype | None,
) -> bool:  # fmt: skip
    """The kernels take these; everything else, mistakes included, is for torch to answer."""
    if (
        type(groups) is not int
        or x.dim() != 4
        or min(*stride, *dilation, groups) < 1
        or min(padding) < 0
    ):
        return False
    if w.numel() == 0 or w.shape[0] % groups or x.shape[1] != w.shape[1] * groups:
        return False
    operands = [x, w] if bias is None else [x, w, bias]
    if bias is not None and bias.shape != w.shape[:1]:
        return False
    if any(t.device != x.device or t.dtype not in DTYPES for t in operands):
        return False
    if not x.is_cuda and torch.bfloat16 in (x.dtype, autocast):
        return False  # Triton's interpreter multiplies bfloat16 as integers
    if autocast is None and any(t.dtype != x.dtype for t in operands):
        return False
    return _fits(x, w, stride, padding, dilation)


def _fits(
    x: Tensor, w: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> bool:  # fmt: skip
    """The window into the padded image, and each count that the kernels make into 32 bits.

    They count an image's elements, padding and what space-to-depth adds included, those of its
    output, and the gradients of weights and bias together.
    """
    image, output, weights = x.shape[1], w.shape[0], w.shape[0] * w.shape[1]
    sides = zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    for side, k, s, p, d in sides:
        room = side + 2 * p - d * (k - 1) - 1
        if room < 0:
            return False
        image, output = image * (side + 2 * p + s - 1), output * (room // s + 1)
        weights *= k + s - 1
    return all(count < 2**31 for count in (image, output, weights + w.shape[0]))
