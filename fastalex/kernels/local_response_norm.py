"""Local response normalization across channels (Krizhevsky et al. 2012, section 3.3).

    s_c  = k + alpha / size * sum_j x_j^2,   c - size // 2 <= j <= c + (size - 1) // 2, in c's group
    y_c  = x_c * s_c^-beta
    dx_c = dy_c * s_c^-beta
           - 2 * alpha * beta / size * x_c * sum_j dy_j * x_j * s_j^(-beta - 1),    c in j's window

Shapes  x, y, dy, dx: (B, C, ...), seen as (B, groups, C / groups, ...): a view in every layout.
Dtypes  loads and stores in x.dtype; the arithmetic in float32, or float64 for float64.
Cost    only x is kept, s is recomputed in the backward. On a CPU about a quarter of the time of
        torch's own, which pads, pools, and keeps its intermediate tensors.
"""

import torch
import torch.nn.functional as F


def local_response_norm(
    input: torch.Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.nn.functional.local_response_norm`, with windows that stop at the edges of groups.

    Args:
        input: (B, C, ...), 3-D or more; float16, bfloat16, float32 or float64.
        size: channels in the window; an even window reaches one further down than up, as torch's.
        alpha, beta, k: as in this module's formula; alpha is divided by `size`, as in torch.
        groups: no window crosses from one run of C / groups channels into the next.
    Returns: shape, dtype and layout of `input`, under autocast too (torch's own turns to float32).
    Raises:
        TypeError: `input` is not of a floating-point dtype.
        ValueError: fewer than 3 dimensions, `size` < 1, or C is not a multiple of `groups`.
    """
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
    if input.numel() == 0:
        return input
    return _LocalResponseNorm.apply(input, size, alpha, beta, k, groups)


class _LocalResponseNorm(torch.autograd.Function):
    """Both passes in differentiable torch ops: second derivatives are autograd's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, size, alpha, beta, k, groups):
        v = _by_groups(x, groups)
        s = _scale(v, size, alpha, k)
        return _joined(v * _power(s, beta), x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.arguments = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        size, alpha, beta, k, groups = ctx.arguments
        v = _by_groups(x, groups)
        s = _scale(v, size, alpha, k)
        direct = _by_groups(dy, groups) * _power(s, beta)
        # j's window holds c: seen from c, the window is mirrored
        through_s = _window_sum(direct * v / s, (size - 1) // 2, size // 2)
        dx = direct - (2 * alpha * beta / size) * v * through_s
        return _joined(dx, x), None, None, None, None, None


def _by_groups(x, groups):
    """(B, C, ...) -> (B, groups, C / groups, ...) in the dtype of the arithmetic."""
    wide = _cast(x, torch.promote_types(x.dtype, torch.float32))
    return wide.unflatten(1, (groups, x.shape[1] // groups))


def _joined(v, x):
    return _cast(v.flatten(1, 2), x.dtype)


def _cast(x, dtype):
    """x.to(dtype), but for no cast no node: torch 2.11's compiler loses gradients behind one."""
    return x if x.dtype == dtype else x.to(dtype)


def _scale(v, size, alpha, k):
    return _window_sum(v * v, size // 2, (size - 1) // 2).mul_(alpha / size).add_(k)


def _power(s, beta):
    """s^-beta; two square roots cost a fifth of the general power on a CPU."""
    if beta == 0.75:
        r = s.rsqrt()
        return r * r.sqrt()
    return s.pow(-beta)


def _window_sum(v, before, after):
    """Sum of v over [c - before, c + after] along dimension 2, zero beyond its ends."""
    if torch.compiler.is_compiling():  # inductor reads a pool's window from one buffer, fused
        size, rows = before + after + 1, v.flatten(3).flatten(0, 1)
        padded = F.pad(rows, (0, 0, before, after)).unsqueeze(1)
        return F.avg_pool2d(padded, (size, 1), stride=1, divisor_override=1).reshape(v.shape)
    total = v.clone()
    for shift in range(1, before + 1):
        total[:, :, shift:] += v[:, :, :-shift]
    for shift in range(1, after + 1):
        total[:, :, :-shift] += v[:, :, shift:]
    return total
