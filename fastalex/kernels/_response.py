"""The kernels of local response normalization alone, and its arithmetic, for a window of 5.

    the formulas are those of local_response_norm.py

A tuple `around` holds the channels before an octet, the octet and those behind it (see _octets.py),
zero beyond the group. Work is done on these three tensors; only the sums of neighbours need
channels apart.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (to Triton's compiler a number is a constexpr, and tl.static_range is a range)

from fastalex.kernels._octets import (
    join,
    load_around,
    octet,
    split,
    spread,
    store_octets,
    widened,
)
from fastalex.kernels._triton import tl, triton


@triton.jit
def local_response_norm_fwd_kernel(
    x_ptr, y_ptr, alpha_over_size, beta, k, octets,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, RELU: tl.constexpr, ROOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at, room = _octets_of_program(octets, GROUP, GROUPS, BLOCK)  # [BLOCK]
    x = rectified(load_around(x_ptr + at, room, None, 2, GROUP), RELU)
    s = k + alpha_over_size * sums_of_squares(x)
    y = x[1] * power(s, beta, ROOTS)[0]
    store_octets(y_ptr + at, room, None, y, GROUP)


@triton.jit
def local_response_norm_bwd_kernel(
    dy_ptr, x_ptr, dx_ptr, alpha_over_size, beta, k, octets,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, RELU: tl.constexpr, ROOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at, room = _octets_of_program(octets, GROUP, GROUPS, BLOCK)  # [BLOCK]
    dy = rectified(load_around(dy_ptr + at, room, None, 2, GROUP), False)
    x = rectified(load_around(x_ptr + at, room, None, 4, GROUP), RELU)
    dx = response_gradient(dy, x, alpha_over_size, beta, k, RELU, ROOTS)
    store_octets(dx_ptr + at, room, None, dx, GROUP)


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
def rectified(around, RELU: tl.constexpr):
    """In float32; of relu(x), NaN kept, if RELU."""
    wide = ()
    for i in tl.static_range(3):
        x = widened(around[i])
        if RELU:
            x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        wide += (x,)
    return wide


@triton.jit
def response_gradient(dy, x, alpha_over_size, beta, k, RELU: tl.constexpr, ROOTS: tl.constexpr):
    """dy: channels -2..9 of octets, x: -4..11 -> dx [N, 8], zero where x <= 0 if RELU."""
    sums = sums_of_squares_around(x)
    near = nearest(x)
    direct = ()
    through_s = ()
    for i in tl.static_range(3):
        p, inverse = power(k + alpha_over_size * sums[i], beta, ROOTS)
        direct += (dy[i] * p,)
        through_s += (direct[i] * near[i] * inverse,)
    through_s = join(sums_of_five(spread(through_s)), 0)
    dx = direct[1] - 2 * alpha_over_size * beta * x[1] * through_s
    if RELU:
        dx = tl.where(x[1] <= 0, 0.0, dx)
    return dx


@triton.jit
def sums_of_squares(x):
    """Channels -2..9 -> the sums around each of 0..7, [N, 8]."""
    return join(sums_of_five(spread(squared(x))), 0)


@triton.jit
def sums_of_squares_around(x):
    """Channels -4..11 -> the sums around each of -2..9."""
    s = sums_of_five(spread(squared(x)))
    return (tl.join(s[0], s[1]), join(s, 2), tl.join(s[10], s[11]))


@triton.jit
def squared(x):
    return (x[0] * x[0], x[1] * x[1], x[2] * x[2])


@triton.jit
def nearest(x):
    """Channels -4..11 -> -2..9."""
    before, behind = split(x[0]), split(x[2])
    return (tl.join(before[2], before[3]), x[1], tl.join(behind[0], behind[1]))


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
        p, inverse = r * tl.sqrt(r), r * r
        root = s * p  # s^1/4
        error = 1 - root * root * (root * p)  # NaN where s is 0 or infinite, and p is exact
        p = tl.where(error == error, p + 0.25 * p * error, p)
    return p, inverse
