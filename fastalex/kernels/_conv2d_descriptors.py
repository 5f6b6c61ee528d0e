"""The same products as `_conv2d_kernels`, their operands brought by tensor descriptors (TMA).

For stride 1 and dilation 1, on Hopper and later, with a batch. A tile is one pixel of many images:
a box of (images, channels) in the maps seen as (B, H * W * C), wherever the pixel lies, so a tap is
the same box further on and needs neither mask, halo nor copy. Taps that lie beyond the border do so
for the whole tile and are left out: a tenth of a 3 x 3 convolution's work on 13 x 13 maps. No box
holds channels that do not belong to it, since 0 * inf would not be 0: a tap's channels are blocks
of BLOCK_K, or one such block and one of TAIL (48 = 32 + 16).

    y[p, n]  = act(b[n] + sum_{q, c} x[p + q, c] * w[n, q, c])     as in `_conv2d_kernels`
    dw[q, c, n] = sum_p x[p + q, c] * dy[p, n],   db[n] = sum_p dy[p, n]      in parts, as there

The descriptors are made in the kernel, in scratch memory that inductor provides under torch.compile
and `_provide_scratch` elsewhere; those made on the host do not survive its tracing.
"""

import torch
from torch import Tensor

from fastalex.kernels._conv2d_kernels import Window, _taps, channels_of_a_group
from fastalex.kernels._conv2d_tiling import Tile, splits
from fastalex.kernels._launch import INTERPRETED, wrap_triton
from fastalex.kernels._triton import AVAILABLE, tl, triton


def convolve_boxes(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor,
    window: Window, groups: int, relu: bool, transposed: bool, precision: str, tile: Tile,
) -> None:  # fmt: skip
    """Fills `y`; all maps are (B, channels, rows, columns) in channels_last, `w` likewise."""
    (b, _, h, width), (_, _, oh, ow) = x.shape, y.shape
    c, n = channels_of_a_group(w, groups, transposed)
    grid = (triton.cdiv(b, tile.m) * oh * ow * groups * triton.cdiv(n, tile.n),)
    wrap_triton(_conv2d_boxes_kernel)[grid](
        x, w, w if bias is None else bias, y,
        b, h, width, oh, ow, c, n, groups, *window.kernel, *window.padding,
        bias is not None, relu, transposed, precision, tile.m, tile.n, tile.k, c % tile.k,
        num_warps=tile.warps(), num_stages=tile.stages(x, tail=c % tile.k),
    )  # fmt: skip


def weight_gradient_boxes(
    x: Tensor, dy: Tensor, c: int, n: int, window: Window, groups: int, bias: bool, precision: str,
    tile: Tile,
) -> Tensor:  # fmt: skip
    """The parts, as of `weight_gradient_parts`."""
    (b, _, h, width), (_, _, oh, ow) = x.shape, dy.shape
    taps = window.kernel[0] * window.kernel[1]
    tiles_n = triton.cdiv(n, tile.n) * groups
    tiles = taps * triton.cdiv(c, tile.m) * tiles_n
    count, _ = splits(x, tiles, triton.cdiv(b, tile.k) * oh * ow)
    parts = x.new_empty((count, n * groups * (taps * c + bias)), dtype=torch.float32)
    wrap_triton(_conv2d_weight_boxes_kernel)[(tiles + tiles_n * bias, count)](
        x, dy, parts, b, h, width, oh, ow, count, c, n, groups, *window.kernel, *window.padding,
        bias, precision, tile.m, tile.n, tile.k,
        num_warps=tile.warps(), num_stages=tile.stages(x),
    )  # fmt: skip
    return parts


@triton.jit
def _conv2d_boxes_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, B, H, W, OH, OW,
    C: tl.constexpr, N: tl.constexpr, GROUPS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = GROUPS * C
    BLOCKS: tl.constexpr = C // BLOCK_K
    tl.static_assert(TAIL == 0 or BLOCKS == 1)
    maps = _matrix(x_ptr, B, H * W * CHANNELS, BLOCK_M, BLOCK_K)
    weights = _weights(w_ptr, C, N, GROUPS, KH * KW, TRANSPOSED, BLOCK_N, BLOCK_K)
    if TAIL:
        tail_maps = _matrix(x_ptr, B, H * W * CHANNELS, BLOCK_M, TAIL)
        tail_weights = _weights(w_ptr, C, N, GROUPS, KH * KW, TRANSPOSED, BLOCK_N, TAIL)

    tiles_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    n0 = pid % tiles_n * BLOCK_N
    group = pid // tiles_n % GROUPS
    pixel = pid // (tiles_n * GROUPS)
    b0, oh, ow = pixel // (OH * OW) * BLOCK_M, pixel // OW % OH, pixel % OW
    first_h, end_h = _taps(oh, H, OH, 1, KH, 1, PH, 1)
    first_w, end_w = _taps(ow, W, OW, 1, KW, 1, PW, 1)
    taps_h, taps_w = tl.maximum(end_h - first_h, 0), tl.maximum(end_w - first_w, 0)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(taps_h * taps_w * BLOCKS):
        c = step % BLOCKS * BLOCK_K
        i, j = first_h + step // BLOCKS // taps_w, first_w + step // BLOCKS % taps_w
        at = ((oh + i - PH) * W + ow + j - PW) * CHANNELS + group * C + c
        tap = i * KW + j
        x = maps.load([b0, at])
        weight = _weight(weights, group, tap, c, n0, C, N, KH * KW, TRANSPOSED)
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
        if TAIL:
            x = tail_maps.load([b0, at + BLOCK_K])
            weight = _weight(tail_weights, group, tap, BLOCK_K, n0, C, N, KH * KW, TRANSPOSED)
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)

    b, n = b0 + tl.arange(0, BLOCK_M), n0 + tl.arange(0, BLOCK_N)
    if BIAS:
        acc += tl.load(b_ptr + group * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    at_pixel = ((b.to(tl.int64) * OH + oh) * OW + ow) * (GROUPS * N) + group * N
    tl.store(
        y_ptr + at_pixel[:, None] + n[None, :],
        acc.to(y_ptr.dtype.element_ty),
        mask=(b < B)[:, None] & (n < N)[None, :],
    )


@triton.jit
def _matrix(ptr, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    return tl.make_tensor_descriptor(
        ptr, [rows, columns], [columns, 1], [BLOCK_ROWS, BLOCK_COLUMNS]
    )


@triton.jit
def _weights(
    ptr, C: tl.constexpr, N: tl.constexpr, GROUPS: tl.constexpr, TAPS: tl.constexpr,
    TRANSPOSED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    if TRANSPOSED:
        return _matrix(ptr, GROUPS * C, TAPS * N, BLOCK_K, BLOCK_N)
    else:
        return _matrix(ptr, GROUPS * N, TAPS * C, BLOCK_N, BLOCK_K)


@triton.jit
def _weight(
    weights, group, tap, c, n, C: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_N] of a tap; columns beyond the group's N are anything."""
    if TRANSPOSED:
        return weights.load([group * C + c, (TAPS - 1 - tap) * N + n])
    else:
        return weights.load([group * N + n, tap * C + c]).T


@triton.jit
def _conv2d_weight_boxes_kernel(
    x_ptr, dy_ptr, parts_ptr, B, H, W, OH, OW, parts,
    C: tl.constexpr, N: tl.constexpr, GROUPS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = KH * KW * C
    maps = _matrix(x_ptr, B, H * W * (GROUPS * C), BLOCK_P, BLOCK_C)
    gradients = _matrix(dy_ptr, B, OH * OW * (GROUPS * N), BLOCK_P, BLOCK_N)
    tiles_n, tiles_c = tl.cdiv(N, BLOCK_N), tl.cdiv(C, BLOCK_C)
    pid, part = tl.program_id(0), tl.program_id(1)
    n0, group = pid % tiles_n * BLOCK_N, pid // tiles_n % GROUPS
    c0, tap = pid // (tiles_n * GROUPS) % tiles_c * BLOCK_C, pid // (tiles_n * GROUPS * tiles_c)
    n = n0 + tl.arange(0, BLOCK_N)
    parts_ptr += part.to(tl.int64) * (GROUPS * N * (K + BIAS))
    blocks = tl.cdiv(B, BLOCK_P)
    if tap < KH * KW:
        i, j = tap // KW - PH, tap % KW - PW  # the input's pixel lies so far from the output's
        first_h, end_h = tl.maximum(-i, 0), tl.minimum(OH, H - i)
        first_w, end_w = tl.maximum(-j, 0), tl.minimum(OW, W - j)
        rows, columns = tl.maximum(end_h - first_h, 0), tl.maximum(end_w - first_w, 0)
        steps = rows * columns * blocks
        each = tl.cdiv(steps, parts)
        acc = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
        for step in range(part * each, tl.minimum(part * each + each, steps)):
            b = step // (rows * columns) * BLOCK_P
            oh, ow = first_h + step // columns % rows, first_w + step % columns
            x = maps.load([b, ((oh + i) * W + ow + j) * (GROUPS * C) + group * C + c0])
            dy = gradients.load([b, (oh * OW + ow) * (GROUPS * N) + group * N + n0])
            acc = tl.dot(x.T, dy, acc, input_precision=PRECISION)
        c = c0 + tl.arange(0, BLOCK_C)
        at = (group * N + n)[None, :] * K + tap * C + c[:, None]
        tl.store(parts_ptr + at, acc, mask=(c < C)[:, None] & (n < N)[None, :])
    elif BIAS:
        steps = OH * OW * blocks
        each = tl.cdiv(steps, parts)
        total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
        for step in range(part * each, tl.minimum(part * each + each, steps)):
            b, pixel = step // (OH * OW) * BLOCK_P, step % (OH * OW)
            dy = gradients.load([b, pixel * (GROUPS * N) + group * N + n0])
            total += dy.to(tl.float32)
        total = tl.sum(total.to(tl.float64), axis=0).to(tl.float32)
        tl.store(parts_ptr + GROUPS * N * K + group * N + n, total, mask=n < N)


def _provide_scratch(*_: object, **__: object) -> None:
    """Before each launch outside inductor, which sees to it itself; a user's allocator stays."""
    from triton.runtime import _allocation

    if isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda")
        )


if AVAILABLE and not INTERPRETED:
    for _kernel in (_conv2d_boxes_kernel, _conv2d_weight_boxes_kernel):
        _kernel.add_pre_run_hook(_provide_scratch)
