"""Local response normalization, then overlapping max-pooling (Krizhevsky et al. 2012, section 3).

    y = max_pool2d(local_response_norm(x))        the formulas stand in these two ops' own files

Shapes  x: (B, C, H, W) -> y: (B, C, H', W'); for the kernels channels last. The kernels take
        AlexNet's pair, a window of 5 channels and a pool of 3x3 with stride 2; others run one op
        after the other.
Dtypes  loads and stores in x.dtype; arithmetic in float32. Nothing is rounded between the two.
Cost    bytes moved in 16 bits, a number of x: forward 2 and of y 2 + 1 for the place 0..8 of the
        maximum, together 2.7; backward 2 + 2 and 2 + 1 of y, together 4.7. Places are written only
        where a gradient is wanted.
"""

import torch
from torch import Tensor

from fastalex.kernels._choice import choose
from fastalex.kernels._launch import channels_last, is_channels_last, public, route, wrap_triton
from fastalex.kernels._response_pool import (
    response_pool_bwd_kernel,
    response_pool_fwd_kernel,
)
from fastalex.kernels._triton import triton
from fastalex.kernels.local_response_norm import (
    SIZE,
    aten_backward,
    aten_forward,
    check_response_norm,
    covers,
    local_response_norm,
    roots,
)
from fastalex.kernels.max_pool2d import (
    aten_max_pool2d,
    aten_max_pool2d_backward,
    in_layout,
    max_pool2d,
    pairs,
)

POOL = [3, 3, 2, 2, 0, 0]
"""Window, stride, padding."""
BLOCK, FORWARD_BLOCK, MOST_ROWS = 128, 32, 8


@public
def local_response_norm_max_pool2d(
    input: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None,
    *,
    groups: int = 1,
    relu: bool = False,
) -> Tensor:
    """`max_pool2d(local_response_norm(input, size, alpha, beta, k), kernel_size, stride)`.

    Args:
        input: (B, C, H, W); float16, bfloat16, float32 or float64.
        size, alpha, beta, k, groups: as in `local_response_norm`.
        kernel_size, stride: as in `max_pool2d`; without padding.
        relu: of relu(input). The backward then zeroes the gradient where input <= 0.
    Returns: (B, C, H', W'), in dtype and layout of `input`.
    Raises: what the two ops raise. A 3-D `input` means what each of the two takes it for: channels
        stand second for the normalization, first for the pool.
    """
    check_response_norm(input, size, groups)
    fits = input.dim() == 4 and input.shape[2] >= 3 and input.shape[3] >= 3
    pool = pairs(kernel_size, stride, 0)
    together = fits and covers(input, size, beta) and pool == ((3, 3), (2, 2), (0, 0))
    mode = route("local_response_norm_max_pool2d", input, together)
    if mode == "aten":
        normalized = local_response_norm(input, size, alpha, beta, k, groups=groups, relu=relu)
        return max_pool2d(normalized, kernel_size, stride)
    trained = torch.is_grad_enabled() and input.requires_grad
    return _ResponsePool.apply(input, alpha, beta, k, groups, relu, trained, mode)


class _ResponsePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha, beta, k, groups, relu, trained, mode):
        y, places = _response_pool(x, alpha, beta, k, groups, relu, trained, mode)
        ctx.save_for_backward(x, places)
        ctx.settings = alpha, beta, k, groups, relu
        return y

    @staticmethod
    def backward(ctx, dy):
        return _response_pool_backward(dy, *ctx.saved_tensors, *ctx.settings), *[None] * 7


def _launch_forward(
    x: Tensor, y: Tensor, places: Tensor, alpha: float, beta: float, k: float, groups: int,
    relu: bool,
) -> None:  # fmt: skip
    (b, c, h, w), (oh, ow) = x.shape, y.shape[2:]
    rows = triton.cdiv(oh, triton.cdiv(oh, MOST_ROWS))
    octets = groups * triton.cdiv(c // groups, 8) * triton.cdiv(oh, rows) * triton.cdiv(ow, 2)
    wrap_triton(response_pool_fwd_kernel)[(b * triton.cdiv(octets, FORWARD_BLOCK),)](
        x, y, places, alpha / SIZE, beta, k, h, w, c // groups, groups, rows, octets,
        relu, roots(x, beta), places.numel() > 0, FORWARD_BLOCK, num_warps=1,
    )  # fmt: skip


def _launch_backward(
    dy: Tensor, x: Tensor, places: Tensor, dx: Tensor, alpha: float, beta: float, k: float,
    groups: int, relu: bool,
) -> None:  # fmt: skip
    b, c, h, w = x.shape
    octets = groups * triton.cdiv(c // groups, 8) * triton.cdiv(h, 2) * triton.cdiv(w, 2)
    wrap_triton(response_pool_bwd_kernel)[(b * triton.cdiv(octets, BLOCK),)](
        dy, x, places, dx, alpha / SIZE, beta, k, h, w, c // groups, groups, octets,
        relu, roots(x, beta), BLOCK,
    )  # fmt: skip


@torch.library.triton_op("fastalex::local_response_norm_max_pool2d", mutates_args={})
def _response_pool(
    x: Tensor,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    relu: bool,
    trained: bool,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """-> y, the places of the maxima: int8 in the window, or int64, ATen's own; none untrained."""
    settings = alpha, beta, k, groups, relu

    def trial(name, x):
        y, places = _response_pool(x, *settings, trained, name)
        return _response_pool_backward(y, x, places, *settings) if trained else y

    op, direction = "local_response_norm_max_pool2d", "both" if trained else "forward"
    if choose(op, direction, mode, ("aten", "triton"), trial, (x,), settings) == "aten":
        normalized = aten_forward(x, *settings)
        return aten_max_pool2d(normalized, POOL, trained, is_channels_last(x))
    b, c, h, w = x.shape
    shape = b, c, (h - 1) // 2, (w - 1) // 2
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    places = torch.empty_like(y, dtype=torch.int8) if trained else y.new_empty(0, dtype=torch.int8)
    _launch_forward(channels_last(x), y, places, *settings)
    return in_layout(y, is_channels_last(x)), places


@torch.library.triton_op("fastalex::local_response_norm_max_pool2d_backward", mutates_args={})
def _response_pool_backward(
    dy: Tensor, x: Tensor, places: Tensor, alpha: float, beta: float, k: float, groups: int,
    relu: bool,
) -> Tensor:  # fmt: skip
    settings = alpha, beta, k, groups, relu
    if places.dtype == torch.int64:
        dy = aten_max_pool2d_backward(dy, x, POOL, places)
        return aten_backward(dy, x, *settings)
    x_last = channels_last(x)
    dx = torch.empty_like(x_last)
    _launch_backward(channels_last(dy), x_last, places, dx, *settings)
    return in_layout(dx, is_channels_last(x))
