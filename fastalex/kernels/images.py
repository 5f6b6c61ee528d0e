"""From stored pixels to a network's input (Krizhevsky et al. 2012, sections 2 and 4.1).

    y[b, c, h, w] = (x[b, h, w', c] - m[h + top_b, w' + left_b, c] + l[b, c]) / std

    w' = W - 1 - w in images that are mirrored, else w; m may be one colour for all places

Space to depth, by s: y2[b, (i * s + j) * 3 + c, h, w] = y[b, c, s * h + i, s * w + j], and zero
        where that is beyond the image: an s-strided convolution becomes one of stride 1, on 3 * s^2
        channels (AlexNet's first layer: 11 x 11 by 4 on 3 becomes 3 x 3 on 48).
Shapes  x: (B, H, W, 3); m: (3,) or (H', W', 3); l: (B, 3); y: (B, 3, H, W) channels_last;
        y2: (B, 3 * s * s, ceil(H / s), ceil(W / s)) channels_last.
Dtypes  x uint8; arithmetic in float32; y float16, bfloat16 or float32 from the kernel.
Cost    bytes a number: 1 read, 2 to 4 written; the mean image comes from the cache. A program makes
        the same output row of several images, so that the places are worked out once. No gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastalex.kernels._choice import choose
from fastalex.kernels._launch import DTYPES, public, route, wrap_triton
from fastalex.kernels._triton import tl, triton

IMAGES, BLOCK = 8, 512

Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""input, mean, lighting, corner, flip."""


@public
def images(
    input: Tensor,
    mean: Tensor,
    lighting: Tensor | None = None,
    *,
    corner: Tensor | None = None,
    flip: Tensor | None = None,
    std: float = 1.0,
    dtype: torch.dtype = torch.float32,
    space_to_depth: int = 1,
) -> Tensor:
    """Pixels, less their mean, mirrored, lit and scaled, as this module's formula has it.

    Args:
        input: (B, H, W, 3) uint8.
        mean: (3,) a colour; or (H', W', 3) an image at least as large as `input`'s.
        lighting: (B, 3) what is added to each colour, in pixel values; None for nothing.
        corner: (B, 2) integers: where each image's top left pixel lies in the mean image; None for
            the window at its centre, ((H' - H) // 2, (W' - W) // 2). An image whose window is not
            wholly within the mean image becomes NaN.
        flip: (B,) which images to mirror once the mean is subtracted; None for none of them.
        std: divides the result.
        dtype: of the output.
        space_to_depth: s of the formula.
    Returns: (B, 3 * s * s, ceil(H / s), ceil(W / s)), channels_last.
    Raises:
        TypeError: `input` is not uint8, `corner` not integers, or `dtype` not of floating point.
        ValueError: shapes or devices that do not fit; `std` or `space_to_depth` not above zero.
    """
    _check(input, mean, lighting, corner, flip, std, dtype, space_to_depth)
    covered = dtype in DTYPES and input.numel() > 0
    mean, lighting = mean.float(), None if lighting is None else lighting.float()
    mode = route("images", mean, covered)
    operands, settings = (input, mean, lighting, corner, flip), (std, dtype, space_to_depth)
    if mode == "aten":
        return _by_aten(operands, *settings)
    return _images(*operands, *settings, mode)


def _check(
    input: Tensor,
    mean: Tensor,
    lighting: Tensor | None,
    corner: Tensor | None,
    flip: Tensor | None,
    std: float,
    dtype: torch.dtype,
    space_to_depth: int,
) -> None:
    if input.dtype != torch.uint8 or not dtype.is_floating_point:
        raise TypeError(
            f"images: `input` must be uint8 and `dtype` floating point, got {input.dtype}, {dtype}"
        )
    if input.dim() != 4 or input.shape[3] != 3:
        raise ValueError(f"images: `input` must be (B, H, W, 3), got {tuple(input.shape)}")
    b, h, w, _ = input.shape
    large = mean.dim() == 3 and mean.shape[0] >= h and mean.shape[1] >= w and mean.shape[2] == 3
    if mean.shape != (3,) and not large:
        raise ValueError(
            f"images: `mean` must be (3,), or (H', W', 3) with H' >= {h} and W' >= {w}, "
            f"got {tuple(mean.shape)}"
        )
    for name, x, shape in (
        ("lighting", lighting, (b, 3)), ("corner", corner, (b, 2)), ("flip", flip, (b,))
    ):  # fmt: skip
        if x is not None and x.shape != shape:
            raise ValueError(f"images: `{name}` must be of shape {shape}, got {tuple(x.shape)}")
    if corner is not None and corner.is_floating_point():
        raise TypeError(f"images: `corner` must be integers, got {corner.dtype}")
    devices = {str(x.device) for x in (input, mean, lighting, corner, flip) if x is not None}
    if len(devices) > 1:
        raise ValueError(f"images: all tensors must be on one device, got {sorted(devices)}")
    if not std > 0 or space_to_depth < 1:
        raise ValueError(
            f"images: `std` must be above 0 and `space_to_depth` at least 1, got {std}, "
            f"{space_to_depth}"
        )


@triton.jit
def _images_kernel(
    x_ptr, mean_ptr, lighting_ptr, corner_ptr, flip_ptr, y_ptr, scale, B, H, W, OUT_H, OUT_W,
    MEAN_H, MEAN_W, top, left, S: tl.constexpr, PER_PIXEL: tl.constexpr,
    HAS_LIGHTING: tl.constexpr, HAS_CORNER: tl.constexpr, HAS_FLIP: tl.constexpr,
    IMAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = 3 * S * S
    row = tl.program_id(0) % OUT_H  # of y
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # of that row's (OUT_W, S, S, 3)
    h = row * S + e % C // (3 * S)  # [BLOCK]
    w = e // C * S + e // 3 % S
    c = e % 3
    inside = (h < H) & (w < W)
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


def _launch(operands: Operands, std: float, dtype: torch.dtype, s: int) -> Tensor:
    x, mean, lighting, corner, flip = operands
    b, h, w, _ = x.shape
    shape = (b, 3 * s * s, -(-h // s), -(-w // s))
    y = torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
    given = [mean if each is None else each.contiguous() for each in (lighting, corner, flip)]
    grid = (shape[2] * triton.cdiv(b, IMAGES), triton.cdiv(shape[3] * shape[1], BLOCK))
    wrap_triton(_images_kernel)[grid](
        x.contiguous(), mean.contiguous(), *given, y, 1 / std, b, h, w, shape[2], shape[3],
        *(mean.shape[:2] if mean.dim() == 3 else (1, 1)), *_center(mean, h, w),
        S=s, PER_PIXEL=mean.dim() == 3, HAS_LIGHTING=lighting is not None,
        HAS_CORNER=corner is not None, HAS_FLIP=flip is not None, IMAGES=IMAGES, BLOCK=BLOCK,
    )  # fmt: skip
    return y


@torch.library.triton_op("fastalex::images", mutates_args={})
def _images(
    x: Tensor,
    mean: Tensor,
    lighting: Tensor | None,
    corner: Tensor | None,
    flip: Tensor | None,
    std: float,
    dtype: torch.dtype,
    space_to_depth: int,
    mode: str,
) -> Tensor:
    operands = (x, mean, lighting, corner, flip)

    def trial(candidate: str, *own: Any) -> Tensor:
        x, mean, lighting, corner, flip = own
        return _images(x, mean, lighting, corner, flip, std, dtype, space_to_depth, candidate)

    settings = (dtype, space_to_depth)
    pick = choose("images", "forward", mode, ("aten", "triton"), trial, operands, settings)
    if pick == "aten":
        return _by_aten(operands, std, dtype, space_to_depth)
    return _launch(operands, std, dtype, space_to_depth)


def _by_aten(operands: Operands, std: float, dtype: torch.dtype, s: int) -> Tensor:
    x, mean, lighting, corner, flip = operands
    _, h, w, _ = x.shape
    y = x.float() - (mean if mean.dim() == 1 else _means(mean, corner, h, w))  # [B, H, W, 3]
    if lighting is not None:
        y = y + lighting[:, None, None]
    y = y * (1 / std)
    if flip is not None:
        y = torch.where(flip[:, None, None, None] != 0, y.flip(2), y)
    y = F.pad(y, (0, 0, 0, -w % s, 0, -h % s)).unflatten(2, (-1, s)).unflatten(1, (-1, s))
    blocks = y.transpose(2, 3).flatten(3)  # [B, H / s, W / s, s * s * 3]
    return blocks.to(dtype).permute(0, 3, 1, 2)


def _means(mean: Tensor, corner: Tensor | None, h: int, w: int) -> Tensor:
    """The mean image at each window, [B, H, W, 3]; [H, W, 3] where all have the same."""
    height, width, _ = mean.shape
    if corner is None:
        top, left = _center(mean, h, w)
        return mean[top : top + h, left : left + w]
    last = torch.tensor([height - h, width - w], device=mean.device)
    found = ((corner >= 0) & (corner <= last)).all(1)[:, None, None, None]
    start = torch.minimum(corner.clamp(min=0), last)
    rows = start[:, :1] + torch.arange(h, device=mean.device)  # [B, H]
    columns = start[:, 1:] + torch.arange(w, device=mean.device)  # [B, W]
    return torch.where(found, mean[rows[:, :, None], columns[:, None, :]], torch.nan)


def _center(mean: Tensor, h: int, w: int) -> tuple[int, int]:
    return ((mean.shape[0] - h) // 2, (mean.shape[1] - w) // 2) if mean.dim() == 3 else (0, 0)
