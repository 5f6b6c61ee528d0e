"""ReLU, then dropout (Krizhevsky et al. 2012, sections 3.1 and 4.2), the mask never stored.

    y  = max(0, x) * m * scale,   m = 0 with probability p, else 1
    dx = where(x <= 0, 0, dy * m * scale)

    scale = 1 / (1 - p) inverted, as torch's; 1 in the paper, which multiplies by 1 - p at test

Random  an element's place e in memory alone gives its number: word e % 4096 // 1024 of Philox4x32-7
        (Salmon et al. 2011; the fewest rounds that passed their BigCrush), key the 64-bit seed,
        counter e // 4096 * 1024 + e % 1024. So the backward makes the same mask again from the
        seed, and a thread's loads and stores are of neighbours. m = 0 where the word < p * 2^32.
Shapes  any; all dense, y, dy and dx laid out as x. seed: (1,) int64, on the device.
Dtypes  loads and stores in x.dtype; arithmetic in float32.
Cost    elements moved: forward 2 a number, backward 3; about 20 instructions a number in all. What
        is kept is x, not y, so that what follows may overwrite y, as it may with torch's ops. There
        is nothing to choose: no op of torch's takes a seed from the device, so "auto" means this
        kernel on a GPU, and torch's two ops on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastalex.kernels._launch import public, route, wrap_triton
from fastalex.kernels._triton import tl, triton

ROUNDS, WORDS, BLOCK = 7, 4, 1024


@public
def relu_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, *, inverted: bool = True
) -> Tensor:
    """`dropout(relu(input), p, training)` of `torch.nn.functional`, in one pass each way.

    The mask comes from a seed that torch's generator of the device draws: `torch.manual_seed`
    governs it, and nothing waits for the device. Where ATen computes (on a CPU, in float64) it is
    bit for bit the mask of torch's two ops; the kernel's is another of the same law.

    Args:
        input: any shape and layout; float16, bfloat16 or float32 for the kernel.
        p: share of the elements that become zero.
        training: False leaves out the dropout.
        inverted: scale what survives by 1 / (1 - p) in training, as torch does. False is the
            paper's dropout: no scale in training, all outputs times 1 - p otherwise.
    Returns: shape, dtype and layout of relu(input). What is dropped of infinity or NaN is NaN, as
        in torch. The gradient of a dropped element is 0: as in torch for a finite dy; where dy is
        not, torch's is NaN if the element was positive.
    Raises:
        ValueError: `p` outside 0..1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"relu_dropout: `p` must be between 0 and 1, got {p}")
    mode = route("relu_dropout", input, covered=training and 0 < p < 1)
    if mode != "aten":
        seed = torch.randint(2**63 - 1, (1,), device=input.device)
        return _ReluDropout.apply(input, seed, p, inverted, mode)
    rectified = F.relu(input)
    if inverted:
        return F.dropout(rectified, p, training)
    if training:
        return rectified * torch.empty_like(rectified).bernoulli_(1 - p)
    return rectified * (1 - p)


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seed, p, inverted, mode):
        y = _relu_dropout(x, seed, p, inverted, mode)
        ctx.save_for_backward(x, seed)
        ctx.arguments = p, inverted, mode
        return y

    @staticmethod
    def backward(ctx, dy):
        return _relu_dropout_backward(dy, *ctx.saved_tensors, *ctx.arguments), *[None] * 4


@triton.jit
def _relu_dropout_fwd_kernel(
    x_ptr, seed_ptr, y_ptr, n, scale,
    THRESHOLD: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, r0, r1, r2, r3 = _words(tl.load(seed_ptr), ROUNDS, BLOCK)
    _forward(x_ptr, y_ptr, at, r0 < THRESHOLD, n, scale)
    _forward(x_ptr, y_ptr, at + BLOCK, r1 < THRESHOLD, n, scale)
    _forward(x_ptr, y_ptr, at + 2 * BLOCK, r2 < THRESHOLD, n, scale)
    _forward(x_ptr, y_ptr, at + 3 * BLOCK, r3 < THRESHOLD, n, scale)


@triton.jit
def _relu_dropout_bwd_kernel(
    dy_ptr, x_ptr, seed_ptr, dx_ptr, n, scale,
    THRESHOLD: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, r0, r1, r2, r3 = _words(tl.load(seed_ptr), ROUNDS, BLOCK)
    _backward(dy_ptr, x_ptr, dx_ptr, at, r0 < THRESHOLD, n, scale)
    _backward(dy_ptr, x_ptr, dx_ptr, at + BLOCK, r1 < THRESHOLD, n, scale)
    _backward(dy_ptr, x_ptr, dx_ptr, at + 2 * BLOCK, r2 < THRESHOLD, n, scale)
    _backward(dy_ptr, x_ptr, dx_ptr, at + 3 * BLOCK, r3 < THRESHOLD, n, scale)


@triton.jit
def _words(seed, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Places of the first of this program's four runs, and each run's words: [BLOCK] all."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    r0, r1, r2, r3 = tl.randint4x(seed, first + i, ROUNDS)
    return 4 * first + i, r0, r1, r2, r3


@triton.jit
def _forward(x_ptr, y_ptr, at, dropped, n, scale):
    x = tl.load(x_ptr + at, mask=at < n).to(tl.float32)  # [BLOCK]
    y = tl.where(x <= 0, 0.0, x) * tl.where(dropped, 0.0, scale)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def _backward(dy_ptr, x_ptr, dx_ptr, at, dropped, n, scale):
    dy = tl.load(dy_ptr + at, mask=at < n).to(tl.float32)  # [BLOCK]
    x = tl.load(x_ptr + at, mask=at < n).to(tl.float32)
    dx = tl.where(dropped | (x <= 0), 0.0, dy * scale)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=at < n)


def _launch_forward(x: Tensor, seed: Tensor, y: Tensor, p: float, inverted: bool) -> None:
    n = x.numel()
    wrap_triton(_relu_dropout_fwd_kernel)[(triton.cdiv(n, WORDS * BLOCK),)](
        x, seed, y, n, _scale(p, inverted), _threshold(p), ROUNDS, BLOCK
    )


def _launch_backward(
    dy: Tensor, x: Tensor, seed: Tensor, dx: Tensor, p: float, inverted: bool
) -> None:
    n = x.numel()
    wrap_triton(_relu_dropout_bwd_kernel)[(triton.cdiv(n, WORDS * BLOCK),)](
        dy, x, seed, dx, n, _scale(p, inverted), _threshold(p), ROUNDS, BLOCK
    )


@torch.library.triton_op("fastalex::relu_dropout", mutates_args={})
def _relu_dropout(x: Tensor, seed: Tensor, p: float, inverted: bool, mode: str) -> Tensor:
    y = torch.empty_like(x)
    x = _laid_out_as(y, x)
    if _by_aten(x, mode):
        return (torch.relu(x) * _factors(x, seed, p, inverted)).to(x.dtype)
    _launch_forward(x, seed, y, p, inverted)
    return y


@torch.library.triton_op("fastalex::relu_dropout_backward", mutates_args={})
def _relu_dropout_backward(
    dy: Tensor, x: Tensor, seed: Tensor, p: float, inverted: bool, mode: str
) -> Tensor:
    dx = torch.empty_like(x)
    dy, x = _laid_out_as(dx, dy), _laid_out_as(dx, x)
    if _by_aten(x, mode):
        factors = _factors(x, seed, p, inverted)
        return torch.where((x <= 0) | (factors == 0), 0.0, dy * factors).to(x.dtype)
    _launch_backward(dy, x, seed, dx, p, inverted)
    return dx


def _by_aten(x: Tensor, mode: str) -> bool:
    return mode == "aten" or (mode == "auto" and not x.is_cuda)


def _laid_out_as(model: Tensor, x: Tensor) -> Tensor:
    return x if x.stride() == model.stride() else torch.empty_like(model).copy_(x)


def _scale(p: float, inverted: bool) -> float:
    return 1 / (1 - p) if inverted else 1.0


def _threshold(p: float) -> int:
    return min(round(p * 2**32), 2**32 - 1)


def _factors(x: Tensor, seed: Tensor, p: float, inverted: bool) -> Tensor:
    """m * scale for a dense x, by torch's own integers: the kernel's mask to the bit, slowly."""
    n = x.numel()
    counter = torch.arange(-(-n // (WORDS * BLOCK)) * BLOCK, device=x.device)
    words = torch.stack(_philox(counter, seed), dim=-1)  # [blocks * BLOCK, WORDS]
    words = words.unflatten(0, (-1, BLOCK)).transpose(1, 2).flatten()[:n]  # in memory's order
    kept = torch.where(words >= _threshold(p), _scale(p, inverted), 0.0)
    return kept.as_strided(x.shape, x.stride())


def _philox(counter: Tensor, seed: Tensor) -> list[Tensor]:
    """Four words of 32 bits for each counter; every word is kept in an int64."""
    low = 2**32 - 1
    c = [counter & low, counter >> 32 & low, counter * 0, counter * 0]
    key = [seed & low, seed >> 32 & low]
    for _ in range(ROUNDS):
        (high_0, low_0), (high_2, low_2) = _product(0xD2511F53, c[0]), _product(0xCD9E8D57, c[2])
        c = [high_2 ^ c[1] ^ key[0], low_2, high_0 ^ c[3] ^ key[1], low_0]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    return c


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two 32-bit words, without leaving 63 bits."""
    lower = a * (b & 0xFFFF)
    upper = a * (b >> 16) + (lower >> 16)
    return upper >> 16, (upper & 0xFFFF) << 16 | lower & 0xFFFF
