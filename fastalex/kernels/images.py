"""From stored pixels to a network's input (Krizhevsky et al. 2012, sections 2 and 4.1).

    y[b, c, h, w] = (x[b, h, w', c] - m[h + top_b, w' + left_b, c] + l[b, c]) / std

    w' = W - 1 - w in images that are mirrored, else w; m may be one colour for all places

Space to depth, by s: y2[b, (i * s + j) * 3 + c, h, w] = y[b, c, s * h + i - p, s * w + j - p], and
        zero where that is beyond the image: an s-strided convolution of padding p becomes one of
        stride 1, on 3 * s^2 channels (AlexNet's first: 11 x 11 by 4 on 3 becomes 3 x 3 on 48).
Shapes  x: (B, H, W, 3); m: (3,) or (H', W', 3); l: (B, 3); y: (B, 3, H, W) channels_last;
        y2: (B, 3 * s * s, ceil((H + p + q) / s), ceil((W + p + q) / s)) channels_last.
Dtypes  x uint8; arithmetic in float32; y float16, bfloat16 or float32 from the kernel.
Cost    bytes a number: 1 read, 2 to 4 written; the mean image comes from the cache. A program makes
        the same output row of several images, so that the places are worked out once. No gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastalex.kernels._choice import choose
from fastalex.kernels._images import _images_kernel
from fastalex.kernels._launch import DTYPES, pair, public, route, wrap_triton
from fastalex.kernels._triton import triton

IMAGES, BLOCK = 8, 512

Pair = tuple[int, int]

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
    padding: tuple[int, int] = (0, 0),
    out: Tensor | None = None,
) -> Tensor:
    """Pixels, less their mean, mirrored, lit and scaled, and cut into blocks:

        y[b, c, h, w] = (x[b, h, w', c] - m[h + top_b, w' + left_b, c] + l[b, c]) / std
        y2[b, (i * s + j) * 3 + c, h, w] = y[b, c, s * h + i - p, s * w + j - p], 0 beyond the image

    w' is w, counted from the right in mirrored images; y2 is what is returned, y where s is 1. Its
    channels come by place in the block, then colour (torch's pixel_unshuffle has the colour first).

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
        space_to_depth: s, the side of a block.
        padding: (p, q): p zeros above and to the left, q below and to the right.
        out: where to put the result, of its shape, in channels_last; its dtype counts, not `dtype`.
    Returns: (B, 3 * s * s, ceil((H + p + q) / s), ceil((W + p + q) / s)), channels_last.
    Raises:
        TypeError: `input` is not uint8, `corner`, `space_to_depth` or `padding` not integers, or
            the dtype of the output not of floating point.
        ValueError: shapes, layouts or devices that do not fit; `std` or `space_to_depth` not above
            zero, `padding` below.
    """
    dtype = dtype if out is None else out.dtype
    _check(input, mean, lighting, corner, flip, std, dtype, space_to_depth, padding)
    covered = dtype in DTYPES and input.numel() > 0
    mean, lighting = mean.float(), None if lighting is None else lighting.float()
    mode = route("images", mean, covered)
    operands = (input, mean, lighting, corner, flip)
    settings = (std, dtype, space_to_depth, padding)
    if out is not None:
        return _into(out, operands, *settings, mode)
    if mode == "aten":
        return _by_aten(operands, *settings)
    return _images(*operands, *settings, mode)


def _into(
    out: Tensor, operands: Operands, std: float, dtype: torch.dtype, s: int, padding: Pair,
    mode: str,
) -> Tensor:  # fmt: skip
    """For whoever keeps buffers: never within torch.compile, so it needs no op of its own."""
    shape = _shape(operands[0], s, padding)
    last = torch.channels_last
    if out.shape != shape or not out.is_contiguous(memory_format=last):
        raise ValueError(
            f"images: `out` must be {shape} in channels_last, got {tuple(out.shape)} with strides "
            f"{out.stride()}"
        )
    if mode == "aten" or _pick(operands, std, dtype, s, padding, mode) == "aten":
        return out.copy_(_by_aten(operands, std, dtype, s, padding))
    return _launch(operands, std, s, padding, out)


def _check(
    input: Tensor,
    mean: Tensor,
    lighting: Tensor | None,
    corner: Tensor | None,
    flip: Tensor | None,
    std: float,
    dtype: torch.dtype,
    space_to_depth: int,
    padding: Pair,
) -> None:
    if input.dtype != torch.uint8 or not dtype.is_floating_point:
        raise TypeError(
            "images: `input` must be uint8 and the output's dtype floating point, got "
            f"{input.dtype} and {dtype}"
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
    if pair(padding) != padding or type(space_to_depth) is not int:
        raise TypeError(
            f"images: `space_to_depth` must be an integer and `padding` a pair of them, got "
            f"{space_to_depth} and {padding}"
        )
    if not std > 0 or space_to_depth < 1 or min(padding) < 0:
        raise ValueError(
            f"images: `std` must be above 0, `space_to_depth` at least 1, `padding` not negative, "
            f"got {std}, {space_to_depth}, {padding}"
        )


def _shape(x: Tensor, s: int, padding: Pair) -> tuple[int, int, int, int]:
    b, h, w, _ = x.shape
    return b, 3 * s * s, -(-(h + sum(padding)) // s), -(-(w + sum(padding)) // s)


def _launch(operands: Operands, std: float, s: int, padding: Pair, y: Tensor) -> Tensor:
    x, mean, lighting, corner, flip = operands
    (b, h, w, _), shape = x.shape, y.shape
    given = [mean if each is None else each.contiguous() for each in (lighting, corner, flip)]
    grid = (shape[2] * triton.cdiv(b, IMAGES), triton.cdiv(shape[3] * shape[1], BLOCK))
    wrap_triton(_images_kernel)[grid](
        x.contiguous(), mean.contiguous(), *given, y, 1 / std, b, h, w, shape[2], shape[3],
        *(mean.shape[:2] if mean.dim() == 3 else (1, 1)), *_center(mean, h, w),
        S=s, BEFORE=padding[0], PER_PIXEL=mean.dim() == 3, HAS_LIGHTING=lighting is not None,
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
    padding: Sequence[int],
    mode: str,
) -> Tensor:
    operands, border = (x, mean, lighting, corner, flip), (padding[0], padding[1])
    if _pick(operands, std, dtype, space_to_depth, border, mode) == "aten":
        return _by_aten(operands, std, dtype, space_to_depth, border)
    shape = _shape(x, space_to_depth, border)
    y = torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
    return _launch(operands, std, space_to_depth, border, y)


def _pick(
    operands: Operands, std: float, dtype: torch.dtype, s: int, padding: Pair, mode: str
) -> str:
    def trial(candidate: str, *own: Any) -> Tensor:
        x, mean, lighting, corner, flip = own
        return _images(x, mean, lighting, corner, flip, std, dtype, s, padding, candidate)

    settings = (dtype, s, *padding)
    return choose("images", "forward", mode, ("aten", "triton"), trial, operands, settings)


def _by_aten(
    operands: Operands, std: float, dtype: torch.dtype, s: int, padding: Pair
) -> Tensor:  # fmt: skip
    x, mean, lighting, corner, flip = operands
    _, h, w, _ = x.shape
    y = x.float() - (mean if mean.dim() == 1 else _means(mean, corner, h, w))  # [B, H, W, 3]
    if lighting is not None:
        y = y + lighting[:, None, None]
    y = y * (1 / std)
    if flip is not None:
        y = torch.where(flip[:, None, None, None] != 0, y.flip(2), y)
    p, q = padding
    y = F.pad(y, (0, 0, p, q + -(w + p + q) % s, p, q + -(h + p + q) % s))
    y = y.unflatten(2, (-1, s)).unflatten(1, (-1, s))
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
