"""The kernels of max-pooling: an octet of neighbouring channels a thread (see _octets.py).

Forward   A thread takes an octet of one pooled pixel, and looks through its window in scan order.
          The place that it writes is the maximum's, or -1 where the maximum is not positive and a
          ReLU stands in front: then the gradient goes nowhere, and the backward needs no mask.
Backward  A thread takes a cell of SH x SW pixels, an octet. All its pixels lie in the same
          ceil(KH / SH) x ceil(KW / SW) windows, and the place of each pixel in each is known when
          the kernel is compiled. dy is gathered; no atomics.

Both      An image's places in memory are counted in 32 bits where they fit, from a base of 64.
          Octets past an image's end repeat its last.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# (to Triton's compiler a number is a constexpr, and tl.static_range is a range)

from fastalex.kernels._octets import load_octets, octet, octets_of_program, store_octets, widened
from fastalex.kernels._triton import tl, triton


@triton.jit
def max_pool2d_fwd_kernel(
    x_ptr, y_ptr, places_ptr,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, C: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, OCTETS: tl.constexpr, RELU: tl.constexpr, PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    NUMEL: tl.constexpr = max(H * W, OH * OW) * C
    image, o, t = octets_of_program(OCTETS, (C + 7) // 8, NUMEL, BLOCK)  # [BLOCK]
    first, room = octet(o, C)
    i, j = t // OW, t % OW
    h, w = i * SH - PH, j * SW - PW
    x = x_ptr + image * (H * W * C) + ((h * W + w) * C + first)
    out = image * (OH * OW * C) + ((i * OW + j) * C + first)

    best = tl.full((BLOCK, 8), float("-inf"), tl.float32).to(x_ptr.dtype.element_ty)
    place = tl.zeros((BLOCK, 8), tl.int32)
    if PH + PW > 0:  # the first pixel of the window that is one of the image
        place += (tl.maximum(-h, 0) * KW + tl.maximum(-w, 0))[:, None].to(tl.int32)
    for kh in tl.static_range(KH):
        for kw in tl.static_range(KW):
            if PH + PW > 0:
                live = (h + kh >= 0) & (h + kh < H) & (w + kw >= 0) & (w + kw < W)
            else:
                live = None
            # LLVM undoes the widening of both sides, and compares pairs of 16-bit numbers packed
            v = load_octets(x + (kh * W + kw) * C, room, live, C, float("-inf")).to(tl.float32)
            so_far = best.to(tl.float32)
            place = tl.where((v > so_far) | (v != v), kh * KW + kw, place)
            best = tl.maximum(v, so_far, propagate_nan=tl.PropagateNan.ALL).to(best.dtype)
    y = best.to(tl.float32)
    if PLACES:
        if RELU:
            place = tl.where(y <= 0, -1, place)
        store_octets(places_ptr + out, room, None, place, C)
    if RELU:
        y = tl.where(y <= 0, 0.0, y)
    store_octets(y_ptr + out, room, None, y, C)


@triton.jit
def max_pool2d_bwd_kernel(
    dy_ptr, places_ptr, dx_ptr,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, C: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, OCTETS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    CELLS: tl.constexpr = (W + PW + SW - 1) // SW
    UP: tl.constexpr = (KH + SH - 1) // SH
    LEFT: tl.constexpr = (KW + SW - 1) // SW
    TOGETHER: tl.constexpr = UP * LEFT <= 4  # else a thread has no room for all of its windows
    NUMEL: tl.constexpr = max(H * W, OH * OW) * C
    image, o, t = octets_of_program(OCTETS, (C + 7) // 8, NUMEL, BLOCK)  # [BLOCK]
    first, room = octet(o, C)
    i, j = t // CELLS, t % CELLS
    h, w = i * SH - PH, j * SW - PW
    dx = dx_ptr + image * (H * W * C) + ((h * W + w) * C + first)
    out = image * (OH * OW * C) + ((i * OW + j) * C + first)

    windows = ()
    if TOGETHER:
        for u in tl.static_range(UP):
            for v in tl.static_range(LEFT):
                window = load_window(dy_ptr, places_ptr, out, room, i, j, u, v, OH, OW, C)
                windows += (window,)
    for a in tl.static_range(SH):
        for b in tl.static_range(SW):
            d = tl.zeros((BLOCK, 8), tl.float32)
            for u in tl.static_range(UP):
                for v in tl.static_range(LEFT):
                    if a + u * SH < KH and b + v * SW < KW:
                        if TOGETHER:
                            dy, place = windows[u * LEFT + v]
                        else:
                            dy, place = load_window(
                                dy_ptr, places_ptr, out, room, i, j, u, v, OH, OW, C
                            )
                        here = place == (a + u * SH) * KW + (b + v * SW)
                        d += tl.where(here, widened(dy), 0.0)
            live = (h + a >= 0) & (h + a < H) & (w + b >= 0) & (w + b < W)
            store_octets(dx + (a * W + b) * C, room, live, d, C)


@triton.jit
def load_window(
    dy_ptr, places_ptr, out, room, i, j, UP: tl.constexpr, LEFT: tl.constexpr,
    OH: tl.constexpr, OW: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dy and places of the window UP rows above and LEFT columns before (i, j); dy 0 if none."""
    live = (i >= UP) & (i < OH + UP) & (j >= LEFT) & (j < OW + LEFT)
    at = out - (UP * OW + LEFT) * C
    dy = load_octets(dy_ptr + at, room, live, C, 0.0)
    return dy, load_octets(places_ptr + at, room, live, C, None)
