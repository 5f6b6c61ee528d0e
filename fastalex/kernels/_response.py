"""The arithmetic of local response normalization with a window of 5, for kernels.

    the formulas are those of local_response_norm.py

Tuples hold neighbouring channels in order, a tensor of float32 for each, zero beyond the group.
"""

from fastalex.kernels._triton import tl, triton


@triton.jit
def normalized(x, alpha_over_size, beta, k, BETA_75: tl.constexpr):
    """x: channels -2..9 of an octet -> y: 0..7."""
    s = scales(x, alpha_over_size, k)
    y = ()
    for i in tl.static_range(8):
        y = y + (x[i + 2] * power(s[i], beta, BETA_75)[0],)
    return y


@triton.jit
def normalized_backward(dy, x, alpha_over_size, beta, k, RELU: tl.constexpr, BETA_75: tl.constexpr):
    """dy: channels -2..9, x: -4..11 -> dx: 0..7, zero where x <= 0 if RELU."""
    s = scales(x, alpha_over_size, k)  # -2..9
    direct = ()
    through_s = ()
    for i in tl.static_range(12):
        p, inverse = power(s[i], beta, BETA_75)
        direct = direct + (dy[i] * p,)
        through_s = through_s + (direct[i] * x[i + 2] * inverse,)
    through_s = sums_of_five(through_s)
    dx = ()
    for i in tl.static_range(8):
        d = direct[i + 2] - 2 * alpha_over_size * beta * x[i + 4] * through_s[i]
        if RELU:
            d = tl.where(x[i + 4] <= 0, 0.0, d)
        dx = dx + (d,)
    return dx


@triton.jit
def scales(x, alpha_over_size, k):
    """n channels -> s of all but two on either side."""
    q = ()
    for i in tl.static_range(len(x)):
        q = q + (x[i] * x[i],)
    q = sums_of_five(q)
    s = ()
    for i in tl.static_range(len(q)):
        s = s + (k + alpha_over_size * q[i],)
    return s


@triton.jit
def sums_of_five(q):
    """n numbers, n even -> the n - 4 sums of five neighbours, by sharing pairs."""
    pairs = ()
    for i in tl.static_range(0, len(q), 2):
        pairs = pairs + (q[i] + q[i + 1],)
    sums = ()
    for i in tl.static_range(0, len(q) - 4, 2):
        even = pairs[i // 2] + pairs[i // 2 + 1] + q[i + 4]
        odd = q[i + 1] + (pairs[i // 2 + 1] + pairs[i // 2 + 2])
        sums = sums + (even, odd)
    return sums


@triton.jit
def power(s, beta, BETA_75: tl.constexpr):
    """s^-beta, 1 / s."""
    if BETA_75:
        r = tl.rsqrt(s)
        p, inverse = r * tl.sqrt(r), r * r
    else:
        log = tl.log2(s)
        p, inverse = tl.exp2(-beta * log), tl.exp2(-log)
    return p, inverse
