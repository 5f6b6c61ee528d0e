"""The weight and bias gradients of a convolution, by pointers: a sum over pixels, in parts.

    dw[n, k] = sum_p dy[p, n] * x[p, k]        k = (tap, channel of the group), p over the pixels
    db[n]    = sum_p dy[p, n]                  dy zeroed where the ReLU's output y is not positive

Shapes  x: (B, H, W, groups * C); dy, y: (B, OH, OW, groups * N), channels innermost.
        parts: (splits, groups * N * KH * KW * C + groups * N), float32: dw's share, then db's.
Split-K AlexNet's weights are 6 to 60 tiles, so each tile's sum is cut into parts of equally many
        steps, about two waves of programs in all; a second kernel adds the parts in float64, always
        in the same order. The bias gradient is the work of programs of its own in the same launch,
        which keeps the products' loop clear; they read dy once, the products once a tile of k.
"""

import torch
from torch import Tensor

from fastalex.kernels._conv2d_kernels import Window, _patches, _pixels
from fastalex.kernels._conv2d_tiling import Tile, box, splits
from fastalex.kernels._launch import wrap_triton
from fastalex.kernels._triton import tl, triton

SUM_BLOCK = 1024


def weight_gradient_parts(
    x: Tensor, dy: Tensor, mask: Tensor | None, c: int, n: int, window: Window, groups: int,
    bias: bool, precision: str, tile: Tile,
) -> Tensor:  # fmt: skip
    """The parts; all maps are (B, channels, rows, columns) in channels_last, of c and n a group."""
    (b, _, h, width), (_, _, oh, ow) = x.shape, dy.shape
    columns = window.kernel[0] * window.kernel[1] * c
    cut = box(b, oh, ow, tile.k)
    tiles_n = triton.cdiv(n, tile.n) * groups
    tiles = triton.cdiv(columns, tile.m) * tiles_n
    count, each = splits(x, tiles, cut.count)
    parts = x.new_empty((count, n * groups * (columns + bias)), dtype=torch.float32)
    wrap_triton(_conv2d_weight_bwd_kernel)[(tiles + tiles_n * bias, count)](
        x, dy, dy if mask is None else mask, parts, b, h, width, oh, ow, cut.count, each,
        c, n, groups, *window.constants(), bias, mask is not None, precision,
        cut.images, cut.rows, cut.columns, tile.m, tile.n,
        num_warps=tile.warps(mask is not None),
        num_stages=tile.stages(x, tile.n * (mask is not None)),
    )  # fmt: skip
    return parts


def sum_of_parts(parts: Tensor, dw: Tensor, db: Tensor) -> None:
    """Adds the parts into `dw`, contiguous or channels_last, and into `db` unless it is empty."""
    n, c, kh, kw = dw.shape
    total = parts.shape[1]
    stride_c, stride_tap = (1, c) if dw.stride(1) == 1 else (kh * kw, 1)
    wrap_triton(_conv2d_sum_kernel)[(triton.cdiv(total, SUM_BLOCK),)](
        parts, dw, db, parts.shape[0], total,
        n, c, kh * kw, stride_c, stride_tap, SUM_BLOCK,
    )  # fmt: skip


@triton.jit
def _conv2d_weight_bwd_kernel(
    x_ptr, dy_ptr, y_ptr, parts_ptr, B, H, W, OH, OW, boxes, boxes_each,
    C: tl.constexpr, N: tl.constexpr, GROUPS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BIAS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    BOX_B: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = KH * KW * C
    tiles_n, tiles_k = tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    pid, part = tl.program_id(0), tl.program_id(1)
    group, tile_n = pid // tiles_n % GROUPS, pid % tiles_n
    tile_k = pid // (tiles_n * GROUPS)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first = part * boxes_each
    end = tl.minimum(first + boxes_each, boxes)
    parts_ptr += part.to(tl.int64) * (GROUPS * N * (K + BIAS))
    if tile_k < tiles_k:
        k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
        acc = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
        for cut in range(first, end):
            b, oh, ow = _pixels(cut, OH, OW, BOX_B, BOX_H, BOX_W)  # [pixels] each
            real = (b < B) & (oh < OH) & (ow < OW)
            h, w = oh * SH - PH, ow * SW - PW
            at_pixel = ((b.to(tl.int64) * H + h) * W + w) * (C * GROUPS) + group * C
            x = _patches(
                x_ptr, x_ptr, at_pixel, h, w, real, k // C, k % C, k < K, H, W,
                C, GROUPS, KW, PH, PW, DH, DW, False,
            )  # [pixels, BLOCK_K]  # fmt: skip
            at = ((b.to(tl.int64) * OH + oh) * OW + ow) * (N * GROUPS) + group * N
            dy = _gradient(dy_ptr, y_ptr, at, n, real, N, MASKED)  # [pixels, BLOCK_N]
            acc = tl.dot(tl.trans(x), dy, acc, input_precision=PRECISION)
        at_weight = (group * N + n)[None, :] * K + k[:, None]
        tl.store(parts_ptr + at_weight, acc, mask=(k < K)[:, None] & (n < N)[None, :])
    elif BIAS:
        total = tl.zeros((BOX_B * BOX_H * BOX_W, BLOCK_N), tl.float32)
        for cut in range(first, end):
            b, oh, ow = _pixels(cut, OH, OW, BOX_B, BOX_H, BOX_W)
            real = (b < B) & (oh < OH) & (ow < OW)
            at = ((b.to(tl.int64) * OH + oh) * OW + ow) * (N * GROUPS) + group * N
            dy = _gradient(dy_ptr, y_ptr, at, n, real, N, MASKED)
            total += dy.to(tl.float32)
        total = tl.sum(total.to(tl.float64), axis=0).to(tl.float32)
        tl.store(parts_ptr + GROUPS * N * K + group * N + n, total, mask=n < N)


@triton.jit
def _gradient(dy_ptr, y_ptr, at, n, real, N: tl.constexpr, MASKED: tl.constexpr):
    """dy behind the ReLU, [pixels, BLOCK_N]."""
    at = at[:, None] + n[None, :]
    inside = real[:, None] & (n < N)[None, :]
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0)
    if MASKED:
        dy = tl.where(tl.load(y_ptr + at, mask=inside, other=0.0) <= 0, 0.0, dy)
    return dy


@triton.jit
def _conv2d_sum_kernel(
    parts_ptr, dw_ptr, db_ptr, parts, total,
    N: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr,
    STRIDE_C: tl.constexpr, STRIDE_TAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.zeros((BLOCK,), tl.float64)
    for _ in range(parts):
        value += tl.load(parts_ptr + i, mask=i < total, other=0.0)
        parts_ptr += total
    K: tl.constexpr = TAPS * C
    is_bias = i >= N * K
    at = i // K * K + i % C * STRIDE_C + i // C % TAPS * STRIDE_TAP
    tl.store(dw_ptr + at, value.to(dw_ptr.dtype.element_ty), mask=(i < total) & ~is_bias)
    tl.store(db_ptr + i - N * K, value.to(db_ptr.dtype.element_ty), mask=(i < total) & is_bias)
