"""The kernels of local response normalization and a 3x3 max-pool of stride 2 in one pass each way.

Forward   A thread walks down ROWS pooled rows of two neighbouring pooled columns, an octet of
          channels: five pixels a row, each normalized once, the row that two windows share carried
          along. The maximum and its place are one number to compare, a key: an integer in the
          values' order, whose last four bits hold 15 - place, so that the first of equals wins.
          For 16-bit tensors these bits are the value's own last (of 23; what is stored has 10),
          and the value is y^2, which spares a square root a pixel; its range leaves |y| < 1e-19
          to be zero. For float32 the key has 64 bits, and the value is y.
Backward  A thread takes 2x2 pixels, an octet. Four windows hold any of them, and which place a
          pixel has in which window is known when the kernel is compiled: nine comparisons a channel
          instead of sixteen. dy is gathered, s computed again; no atomics.

Both      An image's places in memory are counted in 32 bits where they fit, from a base of 64.
          Octets past an image's end repeat its last, and a last block of rows or columns that would
          not fit begins earlier: some results are then written twice, with the same bits, and no
          load or store of the forward has a mask (an octet's neighbours beyond its group aside).
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (to Triton's compiler a number is a constexpr, and tl.static_range is a range)

from fastalex.kernels._octets import (
    load_around,
    octet,
    octets_of_program,
    store_octets,
    widened,
)
from fastalex.kernels._response import power, rectified, response_gradient, sums_of_squares
from fastalex.kernels._triton import tl, triton


@triton.jit
def response_pool_fwd_kernel(
    x_ptr, y_ptr, places_ptr, alpha_over_size, beta, k,
    H: tl.constexpr, W: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, OCTETS: tl.constexpr,
    RELU: tl.constexpr, ROOTS: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = GROUP * GROUPS
    OH: tl.constexpr = (H - 1) // 2
    OW: tl.constexpr = (W - 1) // 2
    PAIRS: tl.constexpr = (OW + 1) // 2
    IN_PIXEL: tl.constexpr = GROUPS * ((GROUP + 7) // 8)

    image, o, t = octets_of_program(OCTETS, IN_PIXEL, H * W * C, BLOCK)  # [BLOCK]
    first, room = octet(o, GROUP)
    row = tl.minimum(t // PAIRS * ROWS, OH - ROWS)
    column = tl.minimum(t % PAIRS * 2, max(OW - 2, 0))
    x = x_ptr + image * (H * W * C) + ((row * W + column) * (2 * C) + first)
    at = image * (OH * OW * C) + ((row * OW + column) * C + first)
    law = alpha_over_size, beta, k

    above = row_maxima(x, room, law, 0, C, OW, GROUP, RELU, ROOTS, PLACES)
    for _ in range(ROWS):
        middle = row_maxima(x + W * C, room, law, 3, C, OW, GROUP, RELU, ROOTS, PLACES)
        x += 2 * W * C
        below = row_maxima(x, room, law, 6, C, OW, GROUP, RELU, ROOTS, PLACES)
        for i in tl.static_range(len(above)):
            best = tl.maximum(tl.maximum(above[i], middle[i]), below[i])
            store_best(y_ptr, places_ptr, at + i * C, room, best, GROUP, RELU, ROOTS, PLACES)
        above = placed_above(below, PLACES)
        at += OW * C


@triton.jit
def row_maxima(
    x, room, law, PLACE: tl.constexpr, C: tl.constexpr, OW: tl.constexpr, GROUP: tl.constexpr,
    RELU: tl.constexpr, ROOTS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Of five pixels from x on: the largest key of the first three, and of the last three.

    PLACE: in its window, of the first of three. A map of one pooled column has the first only.
    """
    keys = ()
    for i in tl.static_range(3 if OW == 1 else 5):
        keys += (key_of(x + i * C, room, law, GROUP, RELU, ROOTS),)
    maxima = ()
    for i in tl.static_range(0, len(keys) - 2, 2):
        a = marked(keys[i], PLACE, x, PLACES)
        b = marked(keys[i + 1], PLACE + 1, x, PLACES)
        c = marked(keys[i + 2], PLACE + 2, x, PLACES)
        maxima += (tl.maximum(tl.maximum(a, b), c),)
    return maxima


@triton.jit
def key_of(p, room, law, GROUP: tl.constexpr, RELU: tl.constexpr, ROOTS: tl.constexpr):
    """Normalized octets at p, or their squares with their sign, as integers in their order."""
    alpha_over_size, beta, k = law
    x = rectified(load_around(p, room, None, 2, GROUP), RELU)
    s = k + alpha_over_size * sums_of_squares(x)
    if ROOTS == 1:
        r = tl.rsqrt(s)
        u = x[1] * r
        v = tl.abs(u) * (tl.abs(u) if RELU else u) * r
    else:
        v = x[1] * power(s, beta, ROOTS)[0]
        v = tl.abs(v) if RELU else v
    key = v.to(tl.int32, bitcast=True)
    if not RELU:
        key = tl.where(v != v, 0x7FC00000, tl.where(key < 0, key ^ 0x7FFFFFFF, key))
    return key


@triton.jit
def marked(key, PLACE: tl.constexpr, p, PLACES: tl.constexpr):
    if PLACES and p.dtype.element_ty == tl.float32:
        key = (key.to(tl.int64) << 4) + (15 - PLACE)
    elif PLACES:
        key = (key | 15) - PLACE
    return key


@triton.jit
def placed_above(keys, PLACES: tl.constexpr):
    """A window's third row is the first of the window below."""
    moved = ()
    for i in tl.static_range(len(keys)):
        moved += ((keys[i] + 6) if PLACES else keys[i],)
    return moved


@triton.jit
def store_best(
    y_ptr, places_ptr, at, room, best, GROUP: tl.constexpr, RELU: tl.constexpr,
    ROOTS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    key = best
    if PLACES:
        store_octets(places_ptr + at, room, None, ~best & 15, GROUP)
        key = (best >> 4).to(tl.int32) if y_ptr.dtype.element_ty == tl.float32 else best & -16
    if not RELU:
        key = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    y = key.to(tl.float32, bitcast=True)
    if ROOTS == 1:
        root = tl.sqrt(tl.abs(y))
        y = root if RELU else tl.where(y < 0, -root, root)
    store_octets(y_ptr + at, room, None, y, GROUP)


@triton.jit
def response_pool_bwd_kernel(
    dy_ptr, x_ptr, places_ptr, dx_ptr, alpha_over_size, beta, k,
    H: tl.constexpr, W: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    OCTETS: tl.constexpr, RELU: tl.constexpr, ROOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = GROUP * GROUPS
    OH: tl.constexpr = (H - 1) // 2
    OW: tl.constexpr = (W - 1) // 2
    CELLS: tl.constexpr = (W + 1) // 2
    IN_PIXEL: tl.constexpr = GROUPS * ((GROUP + 7) // 8)

    image, o, t = octets_of_program(OCTETS, IN_PIXEL, H * W * C, BLOCK)  # [BLOCK]
    first, room = octet(o, GROUP)
    i, j = t // CELLS, t % CELLS
    at = image * (H * W * C) + ((i * W + j) * (2 * C) + first)
    out = image * (OH * OW * C) + ((i * OW + j) * C + first)
    dy, places = dy_ptr + out, places_ptr + out
    law = alpha_over_size, beta, k

    # the windows that begin in this cell (11), the one to the left (10), above (01), and both (00)
    has_11, has_10 = (i < OH) & (j < OW), (i < OH) & (j > 0)
    has_01, has_00 = (i > 0) & (j < OW), (i > 0) & (j > 0)
    w11 = load_window(dy, places, room, has_11, GROUP)
    w10 = load_window(dy - C, places - C, room, has_10, GROUP)
    w01 = load_window(dy - OW * C, places - OW * C, room, has_01, GROUP)
    w00 = load_window(dy - (OW + 1) * C, places - (OW + 1) * C, room, has_00, GROUP)

    x, dx = x_ptr + at, dx_ptr + at
    has_row, has_column = 2 * i + 1 < H, 2 * j + 1 < W
    d = picked(w11, 4)
    store_gradient(d, x, dx, (W + 1) * C, room, has_row & has_column, law, GROUP, RELU, ROOTS)
    d = added(picked(w11, 3), picked(w10, 5))
    store_gradient(d, x, dx, W * C, room, has_row, law, GROUP, RELU, ROOTS)
    d = added(picked(w11, 1), picked(w01, 7))
    store_gradient(d, x, dx, C, room, has_column, law, GROUP, RELU, ROOTS)
    d = added(added(picked(w11, 0), picked(w10, 2)), added(picked(w01, 6), picked(w00, 8)))
    store_gradient(d, x, dx, 0, room, None, law, GROUP, RELU, ROOTS)


@triton.jit
def load_window(dy, places, room, live, GROUP: tl.constexpr):
    """dy and places of one window, channels -2..9 of octets; dy is 0 where there is none."""
    return (
        load_around(dy, room, live, 2, GROUP),
        load_around(places, room, live, 2, GROUP, None),
    )


@triton.jit
def picked(window, PLACE: tl.constexpr):
    """What the window sends to the pixel at PLACE in it."""
    dy, places = window
    d = ()
    for i in tl.static_range(3):
        d += (tl.where(places[i] == PLACE, widened(dy[i]), 0.0),)
    return d


@triton.jit
def added(a, b):
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@triton.jit
def store_gradient(
    dy, x, dx, AT: tl.constexpr, room, live, law,
    GROUP: tl.constexpr, RELU: tl.constexpr, ROOTS: tl.constexpr,
):  # fmt: skip
    """dy: of the normalized pixel AT numbers behind the cell's first."""
    alpha_over_size, beta, k = law
    around = rectified(load_around(x + AT, room, live, 4, GROUP), RELU)
    d = response_gradient(dy, around, alpha_over_size, beta, k, RELU, ROOTS)
    store_octets(dx + AT, room, live, d, GROUP)
