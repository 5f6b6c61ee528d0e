"""A kernel of each fault, and ops that launch all but one; see test_compile_kernels.py."""

import torch

from fastalex.kernels._choice import choose
from fastalex.kernels._launch import wrap_triton
from fastalex.kernels._triton import tl, triton


@triton.jit
def _good_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@triton.jit
def _spilling_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at).to(tl.float32)
    tl.store(y_ptr + at, (x / tl.sum(x)).to(y_ptr.dtype.element_ty))


@triton.jit
def _product_kernel(a_ptr, b_ptr, y_ptr, K, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, STEP)
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, K, STEP):
        a = tl.load(a_ptr + m * K + first + k[None, :])
        b = tl.load(b_ptr + n * K + first + k[:, None])
        total = tl.dot(a, b, total)
    tl.store(y_ptr + m * N + n, total.to(y_ptr.dtype.element_ty))


@triton.jit
def _broken_kernel(x_ptr, y_ptr):
    tl.store(y_ptr + tl.arange(0, 3), 0.0)


@triton.jit
def _forgotten_kernel(x_ptr):
    pass


@triton.jit
def _helper(x_ptr):
    pass


TILES = {
    "triton 128x128x64": (128, 128, 64, 8, 3),
    "triton 16x16x16": (16, 16, 16, 1, 3),
    "triton 128x128x64 9": (128, 128, 64, 8, 9),
}


class Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, size):
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        wrap_triton(_good_kernel)[(1,)](x, y, size, BLOCK=1024)
        return y

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        few = {"waves_per_eu": 8} if torch.version.hip else {}
        wrap_triton(_spilling_kernel)[(1,)](dy, dx, BLOCK=1 << 13, num_warps=1, **few)
        return dx, None


def copy(x, size):
    return Copy.apply(x, size)


def product(a, b):
    names = ("aten", *TILES)
    if torch.cuda.get_device_capability(a.device) < (9, 0) or torch.version.hip:
        names = names[:2]
    pick = choose("product", "forward", "triton", names, None, (a, b))
    m, n, step, warps, stages = TILES[pick]
    y = a.new_empty(m, n)
    wrap_triton(_product_kernel)[(1,)](
        a, b, y, a.shape[1], M=m, N=n, STEP=step, num_warps=warps, num_stages=stages
    )
    return y


def productless(x):
    pick = choose("productless", "forward", "triton", ("aten", "triton 64x64"), None, (x,))
    assert pick != "aten"
    wrap_triton(_good_kernel)[(1,)](x, x, 64, BLOCK=64)


def broken(x):
    wrap_triton(_broken_kernel)[(1,)](x, x)
