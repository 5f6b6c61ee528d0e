"""Local response normalization in PyTorch's own ops, for any device, dtype, window and power.

    the formulas are those of local_response_norm.py

Cost    only x is kept, s is recomputed in the backward. On a CPU some images at a time, so that the
        intermediate tensors stay in its cache.
"""

import torch
import torch.nn.functional as F

from fastalex.kernels._launch import cast

PART = 2**19
"""Numbers that a CPU normalizes at a time: some tensors of 2 MB."""


class AtenResponseNorm(torch.autograd.Function):
    """Both passes in differentiable torch ops: second derivatives are autograd's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, size, alpha, beta, k, groups):
        return response_norm(x, size, alpha, beta, k, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.arguments = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return response_norm_backward(dy, x, *ctx.arguments), None, None, None, None, None


def response_norm(x, size, alpha, beta, k, groups):
    return _in_parts(_response_norm, (x,), size, alpha, beta, k, groups)


def response_norm_backward(dy, x, size, alpha, beta, k, groups):
    return _in_parts(_response_norm_backward, (dy, x), size, alpha, beta, k, groups)


def _in_parts(function, tensors, *arguments):
    """On a CPU some images at a time; elsewhere, and where it is transformed, all at once."""
    x = tensors[-1]
    images = max(1, PART * len(x) // max(1, x.numel()))
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if x.device.type != "cpu" or transformed or len(x) <= images:
        return function(*tensors, *arguments)
    y = torch.empty_like(x)
    for i in range(0, len(x), images):
        y[i : i + images] = function(*(each[i : i + images] for each in tensors), *arguments)
    return y


def _response_norm(x, size, alpha, beta, k, groups):
    v = _by_groups(x, groups)
    s = _scale(v, size, alpha, k)
    return _joined(v * _power(s, beta), x)


def _response_norm_backward(dy, x, size, alpha, beta, k, groups):
    v = _by_groups(x, groups)
    s = _scale(v, size, alpha, k)
    direct = _by_groups(dy, groups) * _power(s, beta)
    # j's window holds c: seen from c, the window is mirrored
    through_s = _window_sum(direct * v / s, (size - 1) // 2, size // 2)
    dx = direct - (2 * alpha * beta / size) * v * through_s
    return _joined(dx, x)


def _by_groups(x, groups):
    """(B, C, ...) -> (B, groups, C / groups, ...) in the dtype of the arithmetic."""
    wide = cast(x, torch.promote_types(x.dtype, torch.float32))
    return wide.unflatten(1, (groups, x.shape[1] // groups))


def _joined(v, x):
    return cast(v.flatten(1, 2), x.dtype)


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
