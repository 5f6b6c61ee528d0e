"""Convolution as a matrix product with gathered operands: the portable form, by pointers.

    y[p, n] = act(b[n] + sum_k x[p, k] * w[k, n])           k = (tap, channel of the group)

    x[p, k]   the input under tap `k // C` of pixel p, zero beyond the border; with `masked`,
              zero also where the mask is not positive: the gradient of a ReLU, as it is loaded
    act       ReLU (NaN stays NaN), or nothing
    w         (groups * N, KH, KW, C); or, `transposed`, (groups * C, KH, KW, N) with its taps
              reversed: then the product is the input gradient of a convolution of stride 1

Shapes  x: (B, H, W, groups * C), y: (B, OH, OW, groups * N), both with their channels innermost.
Dtypes  operands in x.dtype, sums in float32; float32 products in TF32 or not, as torch is told.
Cost    2 * B * OH * OW * groups * N * KH * KW * C floating-point operations; rows of taps that lie
        beyond the border for the whole tile are left out. x is read from memory about once.
"""

from typing import NamedTuple

from torch import Tensor

from fastalex.kernels._conv2d_tiling import Tile, box
from fastalex.kernels._launch import wrap_triton
from fastalex.kernels._triton import tl, triton


class Window(NamedTuple):
    """Where a convolution's taps lie: (rows, columns) of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def mirrored(self) -> "Window":
        """The window of the input gradient, over dy, for stride 1."""
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        padding = (reach[0] - self.padding[0], reach[1] - self.padding[1])
        return self._replace(padding=padding)

    def constants(self) -> tuple[int, ...]:
        return (*self.kernel, *self.stride, *self.padding, *self.dilation)


def convolve(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, mask: Tensor | None,
    window: Window, groups: int, relu: bool, transposed: bool, precision: str, tile: Tile,
) -> None:  # fmt: skip
    """Fills `y`; all maps are (B, channels, rows, columns) in channels_last, `w` likewise."""
    (b, _, h, width), (_, _, oh, ow) = x.shape, y.shape
    c, n = channels_of_a_group(w, groups, transposed)
    cut = box(b, oh, ow, tile.m)
    grid = (cut.count * triton.cdiv(n, tile.n) * groups,)
    wrap_triton(_conv2d_kernel)[grid](
        x, x if mask is None else mask, w, w if bias is None else bias, y,
        b, h, width, oh, ow, c, n, groups, *window.constants(),
        bias is not None, relu, mask is not None, transposed, precision,
        cut.images, cut.rows, cut.columns, tile.n, tile.k,
        num_warps=tile.warps(mask is not None),
        num_stages=tile.stages(x, tile.m * (mask is not None)),
    )  # fmt: skip


def channels_of_a_group(w: Tensor, groups: int, transposed: bool) -> tuple[int, int]:
    """(summed, computed): taken from the weights, whose sizes torch.compile always knows."""
    return (w.shape[0] // groups, w.shape[1]) if transposed else (w.shape[1], w.shape[0] // groups)


@triton.jit
def _conv2d_kernel(
    x_ptr, mask_ptr, w_ptr, b_ptr, y_ptr, B, H, W, OH, OW,
    C: tl.constexpr, N: tl.constexpr, GROUPS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr, BOX_B: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KH * KW
    tiles_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    group = pid // tiles_n % GROUPS
    cut = pid // (tiles_n * GROUPS)
    n = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b, oh, ow = _pixels(cut, OH, OW, BOX_B, BOX_H, BOX_W)  # [BLOCK_M] each
    real = (b < B) & (oh < OH) & (ow < OW)
    h, w = oh * SH - PH, ow * SW - PW
    at_pixel = ((b.to(tl.int64) * H + h) * W + w) * (C * GROUPS) + group * C
    w_ptr += group * (N * TAPS * C)

    _, top, _ = _corner(cut, OH, OW, BOX_B, BOX_H, BOX_W)
    first_tap, end_tap = _taps(top, H, OH, BOX_H, KH, SH, PH, DH)
    end = end_tap * KW * C
    acc = tl.zeros((BOX_B * BOX_H * BOX_W, BLOCK_N), tl.float32)
    for k0 in range(first_tap * KW * C, end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        tap, c = k // C, k % C
        x = _patches(
            x_ptr, mask_ptr, at_pixel, h, w, real, tap, c, k < end, H, W,
            C, GROUPS, KW, PH, PW, DH, DW, MASKED,
        )  # [BLOCK_M, BLOCK_K]  # fmt: skip
        at_weight = ((c + 1) * TAPS - 1 - tap) * N if TRANSPOSED else k
        at_weight = at_weight[:, None] + n[None, :] * (1 if TRANSPOSED else TAPS * C)
        weight = tl.load(w_ptr + at_weight, mask=(k < end)[:, None] & (n < N)[None, :], other=0.0)
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)

    if BIAS:
        acc += tl.load(b_ptr + group * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    at = ((b.to(tl.int64) * OH + oh) * OW + ow) * (N * GROUPS) + group * N
    tl.store(
        y_ptr + at[:, None] + n[None, :],
        acc.to(y_ptr.dtype.element_ty),
        mask=real[:, None] & (n < N)[None, :],
    )


@triton.jit
def _pixels(cut, OH, OW, BOX_B: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr):
    """Image, row and column of each pixel of the cut-th box; columns run fastest, images last."""
    i = tl.arange(0, BOX_B * BOX_H * BOX_W)
    b, oh, ow = _corner(cut, OH, OW, BOX_B, BOX_H, BOX_W)
    return b + i // (BOX_W * BOX_H), oh + i // BOX_W % BOX_H, ow + i % BOX_W


@triton.jit
def _corner(cut, OH, OW, BOX_B: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr):
    """Its first image, row and column."""
    boxes_h, boxes_w = tl.cdiv(OH, BOX_H), tl.cdiv(OW, BOX_W)
    b = cut // (boxes_w * boxes_h) * BOX_B
    return b, cut // boxes_w % boxes_h * BOX_H, cut % boxes_w * BOX_W


@triton.jit
def _taps(
    low,
    size,
    out,
    BOX: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
):
    """[first, end) of the K taps that meet the map for some of BOX outputs from `low` on."""
    high = tl.minimum(low + BOX, out) - 1
    first = tl.cdiv(tl.maximum(P - high * S, 0), D)
    end = tl.minimum(tl.cdiv(tl.maximum(size + P - low * S, 0), D), K)
    return first, end


@triton.jit
def _patches(
    x_ptr, mask_ptr, at_pixel, h, w, real, tap, c, listed, H, W,
    C: tl.constexpr, GROUPS: tl.constexpr, KW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """x under (tap, c) of each pixel: [pixels, columns], zero where there is nothing to read."""
    down, right = tap // KW * DH, tap % KW * DW
    at = at_pixel[:, None] + ((down * W + right) * (C * GROUPS) + c)[None, :]
    inside = real[:, None] & listed[None, :]
    if PH != 0 or PW != 0:
        row, column = h[:, None] + down[None, :], w[:, None] + right[None, :]
        inside = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if MASKED:
        x = tl.where(tl.load(mask_ptr + at, mask=inside, other=0.0) <= 0, 0.0, x)
    return x
