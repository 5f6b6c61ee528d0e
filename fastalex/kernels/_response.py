"""The kernels of local response normalization alone, and its arithmetic, for a window of 5.

    the formulas are those of local_response_norm.py

Tuples hold neighbouring channels in order, a tensor of float32 for each, zero beyond the group.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (to Triton's compiler a number is a constexpr, and tl.static_range is a range)

from fastalex.kernels._octets import join, load_around, octet, rectified, spread, store_octets
from fastalex.kernels._triton import tl, triton


@triton.jit
def local_response_norm_fwd_kernel(
    x_ptr, y_ptr, alpha_over_size, beta, k, octets,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, RELU: tl.constexpr, ROOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at, room = _octets_of_program(octets, GROUP, GROUPS, BLOCK)  # [BLOCK]
    x = rectified(spread(load_around(x_ptr + at, room, None, 2, GROUP)), RELU)
    y = normalized(x, alpha_over_size, beta, k, ROOTS)
    store_octets(y_ptr + at, room, None, join(y), GROUP)


@triton.jit
def local_response_norm_bwd_kernel(
    dy_ptr, x_ptr, dx_ptr, alpha_over_size, beta, k, octets,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, RELU: tl.constexpr, ROOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at, room = _octets_of_program(octets, GROUP, GROUPS, BLOCK)  # [BLOCK]
    dy = rectified(spread(load_around(dy_ptr + at, room, None, 2, GROUP)), False)
    x = rectified(spread(load_around(x_ptr + at, room, None, 4, GROUP)), RELU)
    dx = normalized_backward(dy, x, alpha_over_size, beta, k, RELU, ROOTS)
    store_octets(dx_ptr + at, room, None, join(dx), GROUP)


@triton.jit
def _octets_of_program(octets, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """Places in memory and room of this program's octets, [BLOCK]; past the end, the last again.

    Places are counted from the first row in 32 bits; that row's own place takes 64.
    """
    IN_ROW: tl.constexpr = GROUPS * ((GROUP + 7) // 8)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    row = start // IN_ROW
    last = tl.minimum(octets - 1 - row * IN_ROW, IN_ROW + BLOCK).to(tl.int32)
    q = tl.minimum((start % IN_ROW).to(tl.int32) + tl.arange(0, BLOCK), last)
    first, room = octet(q % IN_ROW, GROUP)
    return row * (GROUP * GROUPS) + (q // IN_ROW * (GROUP * GROUPS) + first), room


@triton.jit
def normalized(x, alpha_over_size, beta, k, ROOTS: tl.constexpr):
    """x: channels -2..9 of an octet -> y: 0..7."""
    s = scales(x, alpha_over_size, k)
    y = ()
    for i in tl.static_range(8):
        y += (x[i + 2] * power(s[i], beta, ROOTS)[0],)
    return y


@triton.jit
def normalized_backward(dy, x, alpha_over_size, beta, k, RELU: tl.constexpr, ROOTS: tl.constexpr):
    """dy: channels -2..9, x: -4..11 -> dx: 0..7, zero where x <= 0 if RELU."""
    s = scales(x, alpha_over_size, k)  # -2..9
    direct = ()
    through_s = ()
    for i in tl.static_range(12):
        p, inverse = power(s[i], beta, ROOTS)
        direct += (dy[i] * p,)
        through_s += (direct[i] * x[i + 2] * inverse,)
    through_s = sums_of_five(through_s)
    dx = ()
    for i in tl.static_range(8):
        d = direct[i + 2] - 2 * alpha_over_size * beta * x[i + 4] * through_s[i]
        if RELU:
            d = tl.where(x[i + 4] <= 0, 0.0, d)
        dx += (d,)
    return dx


@triton.jit
def scales(x, alpha_over_size, k):
    """n channels -> s of all but two on either side."""
    q = ()
    for i in tl.static_range(len(x)):
        q += (x[i] * x[i],)
    q = sums_of_five(q)
    s = ()
    for i in tl.static_range(len(q)):
        s += (k + alpha_over_size * q[i],)
    return s


@triton.jit
def sums_of_five(q):
    """n numbers, n even -> the n - 4 sums of five neighbours, by sharing pairs."""
    pairs = ()
    for i in tl.static_range(0, len(q), 2):
        pairs += (q[i] + q[i + 1],)
    sums = ()
    for i in tl.static_range(0, len(q) - 4, 2):
        even = pairs[i // 2] + pairs[i // 2 + 1] + q[i + 4]
        odd = q[i + 1] + (pairs[i // 2 + 1] + pairs[i // 2 + 2])
        sums += (even, odd)
    return sums


@triton.jit
def power(s, beta, ROOTS: tl.constexpr):
    """s^-beta, 1 / s. ROOTS as `roots` of local_response_norm.py says."""
    if ROOTS == 0:
        log = tl.log2(s)
        p, inverse = tl.exp2(-beta * log), tl.exp2(-log)
    elif ROOTS == 1:
        r = tl.rsqrt(s)
        p, inverse = r * tl.sqrt(r), r * r
    else:
        r = tl.rsqrt(s)
        error = 1 - s * r * r  # NaN where s is 0 or infinite, and r is exact
        r = tl.where(error == error, r + 0.5 * r * error, r)
        p, inverse = r * tl.sqrt_rn(r), r * r
    return p, inverse
