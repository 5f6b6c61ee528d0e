"""Blocks of s x s pixels to channels: a strided convolution as one of stride 1, exactly.

    x2[b, (i, j, c), h, w] = x[b, c, s * h + i - padding, s * w + j - padding]   zero where outside
    w2[o, (i, j, c), q, r] = w[o, c, s * q + i, s * r + j]                       zero where outside

The convolution of x2 with w2 at stride 1, without padding, has the sums of x with w at stride s.
Where s does not divide the kernel, w2 has zeros below and to the right, so that a NaN or infinity
in x also makes NaN of the outputs whose windows end just before it.

Shapes  x: (B, C, H, W), any strides; x2: (B, s * s * C, H2, W2) channels_last, H2 and W2 just what
        the output needs: AlexNet's (3, 227, 227) under an 11 x 11 kernel of stride 4 becomes
        (48, 57, 57) under 3 x 3. w: (O, C, KH, KW); w2: (O, s * s * C, KH2, KW2).
Cost    elements moved: 2 * B * s * s * C * H2 * W2, once forward and once in the weight gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fastalex.kernels._conv2d_kernels import Window
from fastalex.kernels._launch import wrap_triton
from fastalex.kernels._triton import tl, triton

MOST_CHANNELS = 64
"""Above, a tap's channels fill the matrix units without help."""
BLOCK = 1024


def folds(channels: int, window: Window, groups: int) -> bool:
    """Square blocks of a dense convolution with few channels, no hole between its taps."""
    s = window.stride[0]
    return (
        groups == 1
        and s > 1
        and window.stride == (s, s)
        and window.dilation == (1, 1)
        and channels * s * s <= MOST_CHANNELS
    )


def folded_window(window: Window) -> Window:
    """What is left of the window for the blocks."""
    s = window.stride[0]
    kernel = (-(-window.kernel[0] // s), -(-window.kernel[1] // s))
    return Window(kernel, (1, 1), (0, 0), (1, 1))


def folded_maps(x: Tensor, window: Window, rows: int, columns: int) -> Tensor:
    """x2 for an output of `rows` x `columns`."""
    s = window.stride[0]
    b, c, h, w = x.shape
    kh, kw = folded_window(window).kernel
    shape = (b, s * s * c, rows + kh - 1, columns + kw - 1)
    x2 = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    wrap_triton(_space_to_depth_kernel)[(b * shape[2], triton.cdiv(shape[3] * shape[1], BLOCK))](
        x, x2, h, w, shape[2], shape[3], *x.stride(), c, s, *window.padding, BLOCK
    )
    return x2


def folded_weights(w: Tensor, window: Window) -> Tensor:
    """w2, channels_last."""
    s = window.stride[0]
    kh, kw = folded_window(window).kernel
    o, c = w.shape[:2]
    padded = F.pad(w, (0, s * kw - w.shape[3], 0, s * kh - w.shape[2]))
    blocks = padded.reshape(o, c, kh, s, kw, s).permute(0, 2, 4, 3, 5, 1)  # o, q, r, i, j, c
    return blocks.reshape(o, kh, kw, s * s * c).permute(0, 3, 1, 2)


def unfolded_weights(dw2: Tensor, w: Tensor, window: Window) -> Tensor:
    """The gradient of w, from that of w2."""
    s, (_, c, kh, kw) = window.stride[0], w.shape
    blocks = dw2.unflatten(1, (s, s, c)).permute(0, 3, 4, 1, 5, 2)  # o, c, q, i, r, j
    dw = blocks.flatten(4, 5).flatten(2, 3).narrow(2, 0, kh).narrow(3, 0, kw)
    return dw.clone(memory_format=suggest_memory_format(w))


def unfolded_maps(dx2: Tensor, x: Tensor, window: Window) -> Tensor:
    """The gradient of x, from that of x2: zero where no window reaches."""
    s = window.stride[0]
    (_, c, h, w), (top, left) = x.shape, window.padding
    blocks = dx2.unflatten(1, (s, s, c)).permute(0, 3, 4, 1, 5, 2)  # b, c, h, i, w, j
    padded = blocks.flatten(4, 5).flatten(2, 3)
    below, right = top + h - padded.shape[2], left + w - padded.shape[3]
    return F.pad(padded, (-left, right, -top, below))


@triton.jit
def _space_to_depth_kernel(
    x_ptr, x2_ptr, H, W, H2, W2, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = S * S * C
    row = tl.program_id(0).to(tl.int64)  # of x2, over all images
    b, h2 = row // H2, row % H2
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    w2, i, j, c = e // CHANNELS, e % CHANNELS // (S * C), e // C % S, e % C
    h, w = h2 * S + i - TOP, w2 * S + j - LEFT
    inside = (w2 < W2) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    at = b * stride_b + c.to(tl.int64) * stride_c + h.to(tl.int64) * stride_h
    at += w.to(tl.int64) * stride_w
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    tl.store(x2_ptr + row * W2 * CHANNELS + e, x, mask=w2 < W2)
