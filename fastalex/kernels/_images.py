"""The kernel of `fastalex.kernels.images`, whose head has its formula."""

from fastalex.kernels._triton import tl, triton


@triton.jit
def _images_kernel(
    x_ptr, mean_ptr, lighting_ptr, corner_ptr, flip_ptr, y_ptr, scale, B, H, W, OUT_H, OUT_W,
    MEAN_H, MEAN_W, top, left, S: tl.constexpr, BEFORE: tl.constexpr, PER_PIXEL: tl.constexpr,
    HAS_LIGHTING: tl.constexpr, HAS_CORNER: tl.constexpr, HAS_FLIP: tl.constexpr,
    IMAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = 3 * S * S
    row = tl.program_id(0) % OUT_H  # of y
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # of that row's (OUT_W, S, S, 3)
    h = row * S + e % C // (3 * S) - BEFORE  # [BLOCK]
    w = e // C * S + e // 3 % S - BEFORE
    c = e % 3
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    for i in range(IMAGES):
        b = (tl.program_id(0) // OUT_H).to(tl.int64) * IMAGES + i
        b = tl.minimum(b, B - 1)  # past the last image: that one again
        column = w
        if HAS_FLIP:
            column = tl.where(tl.load(flip_ptr + b) != 0, W - 1 - w, w)
        x = tl.load(x_ptr + b * H * W * 3 + ((h * W + column) * 3 + c), mask=inside, other=0)
        if PER_PIXEL:
            found = inside
            m_top, m_left = top, left
            if HAS_CORNER:  # held against the bounds before it is cut to 32 bits
                row_0, column_0 = tl.load(corner_ptr + 2 * b), tl.load(corner_ptr + 2 * b + 1)
                fits = (row_0 >= 0) & (row_0 <= MEAN_H - H)
                fits = fits & (column_0 >= 0) & (column_0 <= MEAN_W - W)
                found = inside & (h < tl.where(fits, H, 0))
                m_top, m_left = row_0.to(tl.int32), column_0.to(tl.int32)
            m_at = ((m_top + h) * MEAN_W + m_left + column) * 3 + c
            m = tl.load(mean_ptr + m_at, mask=found, other=float("nan"))
        else:
            m = tl.load(mean_ptr + c)
        y = x.to(tl.float32) - m
        if HAS_LIGHTING:
            y += tl.load(lighting_ptr + 3 * b + c)
        y = tl.where(inside, y * scale, 0.0)
        y_at = (b * OUT_H + row) * OUT_W * C + e
        tl.store(y_ptr + y_at, y.to(y_ptr.dtype.element_ty), mask=e < OUT_W * C)
