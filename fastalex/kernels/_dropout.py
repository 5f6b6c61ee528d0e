"""Dropout whose mask is a function of where an element stands; behind a ReLU or by itself.

For `keyed_dropout` and `relu_dropout`, which are this with other places.

    y  = f(x) * m * scale,        m = 0 with probability p, else 1; f is max(0, .) or nothing
    dx = where(m = 0 or f cuts x, 0, dy * scale)

    scale = 1 / (1 - p) inverted, as torch's; 1 in the paper, which multiplies by 1 - p at test

Random  the element of row r and unit u gets word r % 4 of Philox4x32-7 (Salmon et al. 2011; the
        fewest rounds that passed their BigCrush), its key the 64-bit seed, its counter (r // 4, u,
        step, layer), each mod 2^32. m = 0 where the word < p * 2^32. Whoever holds a part of the
        rows or of the units makes the whole's mask there, and the backward makes it again.
Shapes  x, y, dy, dx: dense and laid out alike, n elements read in memory's order as rows of `units`
        each, the last perhaps cut short. key: (2,) int64, seed and step, on the device, so that
        another step is no other launch. The first element's row and unit are given.
Dtypes  loads and stores in x.dtype; arithmetic in float32.
Cost    elements moved: forward 2 a number, backward 3, or 2 without the ReLU; about 20 instructions
        a number. A program has four rows, so that no word is wasted, of BLOCK units, which are
        neighbours. What is kept is x, not y, so that what follows may overwrite y.
"""

import torch
from torch import Tensor

from fastalex.kernels._launch import wrap_triton
from fastalex.kernels._triton import tl, triton

ROUNDS, WORDS, BLOCK = 7, 4, 1024
LOW = 2**32 - 1
MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # Philox4x32's


class Dropout(torch.autograd.Function):
    """Dropout.apply(x, key, p, inverted, relu, place, mode): the op below, with its gradient."""

    @staticmethod
    def forward(ctx, x, key, p, inverted, relu, place, mode):
        y = _dropout(x, key, p, inverted, relu, place, mode)
        ctx.save_for_backward(x if relu else None, key)
        ctx.arguments = p, inverted, place, mode
        return y

    @staticmethod
    def backward(ctx, dy):
        return _dropout_backward(dy, *ctx.saved_tensors, *ctx.arguments), *[None] * 6


@triton.jit(do_not_specialize=["layer", "first_row", "first_unit"])
def _dropout_fwd_kernel(
    x_ptr, key_ptr, y_ptr, n, units, layer, first_row, first_unit, scale,
    THRESHOLD: tl.constexpr, RELU: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    seed, step = tl.load(key_ptr), tl.load(key_ptr + 1)
    row, u, r0, r1, r2, r3 = _words(seed, step, layer, first_row, first_unit, ROUNDS, BLOCK)
    _forward(x_ptr, y_ptr, row, u, r0 < THRESHOLD, n, units, scale, RELU)
    _forward(x_ptr, y_ptr, row + 1, u, r1 < THRESHOLD, n, units, scale, RELU)
    _forward(x_ptr, y_ptr, row + 2, u, r2 < THRESHOLD, n, units, scale, RELU)
    _forward(x_ptr, y_ptr, row + 3, u, r3 < THRESHOLD, n, units, scale, RELU)


@triton.jit(do_not_specialize=["layer", "first_row", "first_unit"])
def _dropout_bwd_kernel(
    dy_ptr, x_ptr, key_ptr, dx_ptr, n, units, layer, first_row, first_unit, scale,
    THRESHOLD: tl.constexpr, RELU: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    seed, step = tl.load(key_ptr), tl.load(key_ptr + 1)
    row, u, r0, r1, r2, r3 = _words(seed, step, layer, first_row, first_unit, ROUNDS, BLOCK)
    _backward(dy_ptr, x_ptr, dx_ptr, row, u, r0 < THRESHOLD, n, units, scale, RELU)
    _backward(dy_ptr, x_ptr, dx_ptr, row + 1, u, r1 < THRESHOLD, n, units, scale, RELU)
    _backward(dy_ptr, x_ptr, dx_ptr, row + 2, u, r2 < THRESHOLD, n, units, scale, RELU)
    _backward(dy_ptr, x_ptr, dx_ptr, row + 3, u, r3 < THRESHOLD, n, units, scale, RELU)


@triton.jit
def _words(
    seed, step, layer, first_row, first_unit, ROUNDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The first of this program's four rows of x, its units, and each row's words: [BLOCK] all.

    The four share a counter in the whole batch, and may begin before x and end behind it.
    """
    group = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r0, r1, r2, r3 = tl.philox(
        seed,
        (group + first_row // 4).to(tl.uint32), (u + first_unit).to(tl.uint32),
        step.to(tl.uint32), tl.cast(layer, tl.uint32), ROUNDS,
    )  # fmt: skip
    return 4 * group - first_row % 4, u, r0, r1, r2, r3


@triton.jit
def _forward(x_ptr, y_ptr, row, u, dropped, n, units, scale, RELU: tl.constexpr):
    at = row * units + u  # [BLOCK]
    mask = (u < units) & (at >= 0) & (at < n)
    x = tl.load(x_ptr + at, mask=mask).to(tl.float32)
    if RELU:
        x = tl.where(x <= 0, 0.0, x)
    y = x * tl.where(dropped, 0.0, scale)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(dy_ptr, x_ptr, dx_ptr, row, u, dropped, n, units, scale, RELU: tl.constexpr):
    at = row * units + u  # [BLOCK]
    mask = (u < units) & (at >= 0) & (at < n)
    dy = tl.load(dy_ptr + at, mask=mask).to(tl.float32)
    if RELU:
        dropped |= tl.load(x_ptr + at, mask=mask).to(tl.float32) <= 0
    dx = tl.where(dropped, 0.0, dy * scale)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _grid(n: int, units: int, first_row: int) -> tuple[int, int]:
    """Groups of four rows of the whole batch that x has a part of; blocks of units."""
    behind = first_row + triton.cdiv(n, units)
    return triton.cdiv(behind, WORDS) - first_row // WORDS, triton.cdiv(units, BLOCK)


def _launch_forward(
    x: Tensor, key: Tensor, y: Tensor, p: float, inverted: bool, relu: bool, place: list[int]
) -> None:
    units, layer, first_row, first_unit = place
    wrap_triton(_dropout_fwd_kernel)[_grid(x.numel(), units, first_row)](
        x, key, y, x.numel(), units, layer, first_row, first_unit, scale_of(p, inverted),
        _threshold(p), relu, ROUNDS, BLOCK,
    )  # fmt: skip


def _launch_backward(
    dy: Tensor, x: Tensor | None, key: Tensor, dx: Tensor, p: float, inverted: bool,
    place: list[int],
) -> None:  # fmt: skip
    units, layer, first_row, first_unit = place
    wrap_triton(_dropout_bwd_kernel)[_grid(dy.numel(), units, first_row)](
        dy, x, key, dx, dy.numel(), units, layer, first_row, first_unit, scale_of(p, inverted),
        _threshold(p), x is not None, ROUNDS, BLOCK,
    )  # fmt: skip


@torch.library.triton_op("fastalex::dropout", mutates_args={})
def _dropout(
    x: Tensor, key: Tensor, p: float, inverted: bool, relu: bool, place: list[int], mode: str
) -> Tensor:
    """`place`: units a row, layer, and the row and unit of the whole that x begins with."""
    y = torch.empty_like(x)
    x = _laid_out_as(y, x)
    if _by_aten(x, mode):
        rectified = torch.relu(x) if relu else x
        return (rectified * _factors(x, key, p, inverted, place)).to(x.dtype)
    _launch_forward(x, key, y, p, inverted, relu, place)
    return y


@torch.library.triton_op("fastalex::dropout_backward", mutates_args={})
def _dropout_backward(
    dy: Tensor, x: Tensor | None, key: Tensor, p: float, inverted: bool, place: list[int], mode: str
) -> Tensor:
    """`x`: what went through the ReLU; None where there was no ReLU, and all is contiguous."""
    contiguous = torch.contiguous_format
    dx = torch.empty_like(dy, memory_format=contiguous) if x is None else torch.empty_like(x)
    dy = _laid_out_as(dx, dy)
    x = x if x is None else _laid_out_as(dx, x)
    if _by_aten(dy, mode):
        factors = _factors(dy, key, p, inverted, place)
        cut = factors == 0 if x is None else (factors == 0) | (x <= 0)
        return torch.where(cut, 0.0, dy * factors).to(dy.dtype)
    _launch_backward(dy, x, key, dx, p, inverted, place)
    return dx


def _by_aten(x: Tensor, mode: str) -> bool:
    return mode == "aten" or (mode == "auto" and not x.is_cuda)


def _laid_out_as(model: Tensor, x: Tensor) -> Tensor:
    return x if x.stride() == model.stride() else torch.empty_like(model).copy_(x)


def scale_of(p: float, inverted: bool) -> float:
    """What survives in training is multiplied by this."""
    return 1 / (1 - p) if inverted else 1.0


def _threshold(p: float) -> int:
    return min(round(p * 2**32), LOW)


def _factors(x: Tensor, key: Tensor, p: float, inverted: bool, place: list[int]) -> Tensor:
    """m * scale for a dense x, in float32."""
    units, *rest = place
    rows = -(-x.numel() // units)
    flat = kept(key, rows, units, p, *rest).flatten()[: x.numel()]
    return torch.where(flat, scale_of(p, inverted), 0.0).as_strided(x.shape, x.stride())


def kept(
    key: Tensor, rows: int, units: int, p: float, layer: int, first_row: int, first_unit: int
) -> Tensor:
    """(rows, units) bool: what survives, by torch's own integers, to the bit what a kernel keeps.

    A word's counter has four rows, whose words are computed once, by about 100 small operations.
    """
    groups = torch.arange(first_row // WORDS, -(-(first_row + rows) // WORDS), device=key.device)
    unit = torch.arange(first_unit, first_unit + units, device=key.device)
    groups, unit = groups & LOW, unit & LOW  # torch 2.11's compiler overflows in arange * constant
    step = key[1] & LOW
    words = _philox([groups[:, None], unit, step, torch.full_like(step, layer)], key[0])
    survives = torch.stack([word >= _threshold(p) for word in words], dim=1)  # [groups, 4, units]
    return survives.flatten(0, 1)[first_row % WORDS :][:rows]


def _philox(counter: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Four words of 32 bits, each kept in an int64, for counters that broadcast."""
    turn = torch.arange(ROUNDS, device=seed.device)
    keys = [(half & LOW) + turn * w & LOW for half, w in zip((seed, seed >> 32), WEYL, strict=True)]
    c0, c1, c2, c3 = counter
    for k0, k1 in zip(keys[0].unbind(), keys[1].unbind(), strict=True):
        high_0, low_0 = _product(MULTIPLIERS[0], c0)
        high_2, low_2 = _product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_2 ^ (c1 ^ k0), low_2, high_0 ^ (c3 ^ k1), low_0
    return [c0, c1, c2, c3]


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b, two words, a >= 2^31: by (a - 2^32) * b, which has 63 bits."""
    product = (a - 2**32) * b
    return (product >> 32) + b, product & LOW
