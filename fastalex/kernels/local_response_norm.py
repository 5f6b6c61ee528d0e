"""Local response normalization across channels (Krizhevsky et al. 2012, section 3.3).

    s_c  = k + alpha / size * sum_j x_j^2,   c - size // 2 <= j <= c + (size - 1) // 2, in c's group
    y_c  = x_c * s_c^-beta
    dx_c = dy_c * s_c^-beta
           - 2 * alpha * beta / size * x_c * sum_j dy_j * x_j * s_j^(-beta - 1),    c in j's window

Shapes  x, y, dy, dx: (B, C, ...), for the kernels M rows of C: channels last.
Dtypes  loads and stores in x.dtype; the arithmetic in float32, or float64 for float64.
Cost    elements moved: forward 2 a number, backward 3; only x is kept, s is computed again. The
        kernels take a window of 5; a thread takes an octet of channels and 2 (backward 4 of x) on
        either side, which its neighbours have loaded too. s^-.75 = r * sqrt(r), r = 1 / sqrt(s).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fastalex.kernels._aten_response_norm import (
    AtenResponseNorm,
    response_norm,
    response_norm_backward,
)
from fastalex.kernels._choice import choose
from fastalex.kernels._launch import public, route, wrap_triton
from fastalex.kernels._response import (
    local_response_norm_bwd_kernel,
    local_response_norm_fwd_kernel,
)
from fastalex.kernels._triton import triton

SIZE, BLOCK = 5, 128


@public
def local_response_norm(
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    groups: int = 1,
    relu: bool = False,
) -> Tensor:
    """`torch.nn.functional.local_response_norm`, with windows that stop at the edges of groups.

    Args:
        input: (B, C, ...), 3-D or more; float16, bfloat16, float32 or float64.
        size: channels in the window; an even window reaches one further down than up, as torch's.
        alpha, beta, k: as in this module's formula; alpha is divided by `size`, as in torch.
        groups: no window crosses from one run of C / groups channels into the next.
        relu: normalize relu(input). The backward then zeroes the gradient where input <= 0.
    Returns: shape, dtype and layout of `input`, under autocast too (torch's own turns to float32).
    Raises:
        TypeError: `input` is not of a floating-point dtype.
        ValueError: fewer than 3 dimensions, `size` < 1, or C is not a multiple of `groups`.
    """
    check_response_norm(input, size, groups)
    mode = route("local_response_norm", input, covers(input, size, beta))
    if mode != "aten":
        return _ResponseNorm.apply(input, alpha, beta, k, groups, relu, mode)
    if relu:
        input = F.relu(input)
    if input.numel() == 0:
        return input
    return AtenResponseNorm.apply(input, size, alpha, beta, k, groups)


def check_response_norm(input: Tensor, size: int, groups: int) -> None:
    if not input.is_floating_point():
        raise TypeError(
            f"local_response_norm: `input` must be floating point, got {input.dtype}; convert it"
        )
    if input.dim() < 3:
        raise ValueError(
            "local_response_norm: `input` must be (B, C, ...) of at least 3 dimensions, "
            f"got shape {tuple(input.shape)}"
        )
    if size < 1:
        raise ValueError(f"local_response_norm: `size` must be at least 1 channel, got {size}")
    if groups < 1 or input.shape[1] % groups:
        raise ValueError(
            f"local_response_norm: `groups` (={groups}) must divide the {input.shape[1]} channels "
            f"of `input`, of shape {tuple(input.shape)}"
        )


def covers(input: Tensor, size: int, beta: float) -> bool:
    """A GPU's quick logarithm is too coarse for other powers in float32."""
    return size == SIZE and (beta == 0.75 or input.dtype != torch.float32)


def roots(x: Tensor, beta: float) -> int:
    """How the kernels compute s^-beta: 0 by logarithms, 1 by quick roots, 2 by refined ones."""
    return 0 if beta != 0.75 else 2 if x.dtype == torch.float32 else 1


class _ResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha, beta, k, groups, relu, mode):
        ctx.save_for_backward(x)
        ctx.arguments = alpha, beta, k, groups, relu, mode
        return _local_response_norm(x, *ctx.arguments)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return _local_response_norm_backward(dy, x, *ctx.arguments), *[None] * 6


def _launch_forward(
    x: Tensor, y: Tensor, alpha: float, beta: float, k: float, groups: int, relu: bool
) -> None:
    group, octets = _counts(x, groups)
    wrap_triton(local_response_norm_fwd_kernel)[(triton.cdiv(octets, BLOCK),)](
        x, y, alpha / SIZE, beta, k, octets, group, groups, relu, roots(x, beta), BLOCK
    )


def _launch_backward(
    dy: Tensor, x: Tensor, dx: Tensor, alpha: float, beta: float, k: float, groups: int, relu: bool
) -> None:
    group, octets = _counts(x, groups)
    wrap_triton(local_response_norm_bwd_kernel)[(triton.cdiv(octets, BLOCK),)](
        dy, x, dx, alpha / SIZE, beta, k, octets, group, groups, relu, roots(x, beta), BLOCK
    )


@torch.library.triton_op("fastalex::local_response_norm", mutates_args={})
def _local_response_norm(
    x: Tensor, alpha: float, beta: float, k: float, groups: int, relu: bool, mode: str
) -> Tensor:
    settings = alpha, beta, k, groups, relu

    def trial(name, x):
        return _local_response_norm(x, *settings, name)

    candidates = ("aten", "triton")
    pick = choose("local_response_norm", "forward", mode, candidates, trial, (x,), settings)
    if pick == "aten":
        return aten_forward(x, *settings)
    rows = _rows(x)
    y = torch.empty_like(rows)
    _launch_forward(rows, y, *settings)
    return _laid_out_as(x, y)


@torch.library.triton_op("fastalex::local_response_norm_backward", mutates_args={})
def _local_response_norm_backward(
    dy: Tensor, x: Tensor, alpha: float, beta: float, k: float, groups: int, relu: bool, mode: str
) -> Tensor:
    settings = alpha, beta, k, groups, relu

    def trial(name, dy, x):
        return _local_response_norm_backward(dy, x, *settings, name)

    candidates = ("aten", "triton")
    pick = choose("local_response_norm", "backward", mode, candidates, trial, (dy, x), settings)
    if pick == "aten":
        return aten_backward(dy, x, *settings)
    rows = _rows(x)
    dx = torch.empty_like(rows)
    _launch_backward(_rows(dy), rows, dx, *settings)
    return _laid_out_as(x, dx)


def aten_forward(x: Tensor, alpha: float, beta: float, k: float, groups: int, relu: bool) -> Tensor:
    return response_norm(torch.relu(x) if relu else x, SIZE, alpha, beta, k, groups)


def aten_backward(
    dy: Tensor, x: Tensor, alpha: float, beta: float, k: float, groups: int, relu: bool
) -> Tensor:
    """The gradient of `response_norm(relu(x))`, or of `response_norm(x)`, window of 5."""
    if not relu:
        return response_norm_backward(dy, x, SIZE, alpha, beta, k, groups)
    dx = response_norm_backward(dy, torch.relu(x), SIZE, alpha, beta, k, groups)
    return torch.where(x <= 0, 0.0, dx).to(x.dtype)


def _rows(x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, ..., C), its channels side by side: a view where they are so already."""
    return x.movedim(1, -1).contiguous()


def _laid_out_as(x: Tensor, rows: Tensor) -> Tensor:
    y = rows.movedim(-1, 1)
    last = suggest_memory_format(x) != torch.contiguous_format
    return y if last or x.movedim(1, -1).is_contiguous() else y.contiguous()


def _counts(rows: Tensor, groups: int) -> tuple[int, int]:
    """Channels in a group, octets in all."""
    group = rows.shape[-1] // groups
    return group, rows.numel() // rows.shape[-1] * groups * triton.cdiv(group, 8)
