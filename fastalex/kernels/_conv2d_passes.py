"""Each pass of conv2d_relu by Triton: what is tried for it, and the steps that lead to its kernel.

A strided convolution of few channels becomes one of stride 1 (`_space_to_depth`); the kernels see
maps and weights with their channels innermost, and results go back to torch's layout.
"""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fastalex.kernels._conv2d_descriptors import convolve_boxes, weight_gradient_boxes
from fastalex.kernels._conv2d_kernels import Window, convolve
from fastalex.kernels._conv2d_tiling import (
    box_tilings,
    channel_block,
    has_descriptors,
    named,
    tilings,
    weight_box_tilings,
)
from fastalex.kernels._conv2d_weight_gradient import sum_of_parts, weight_gradient_parts
from fastalex.kernels._launch import channels_last, is_channels_last
from fastalex.kernels._space_to_depth import (
    folded_maps,
    folded_weights,
    folded_window,
    folds,
    unfolded_maps,
    unfolded_weights,
)


def candidates(
    x: Tensor, w: Tensor, window: Window, groups: int, direction: str, dy: Tensor | None = None
) -> tuple[str, ...]:
    """ "aten", then names of tiles, the default first; "aten" alone where there is no kernel.

    `dy`: what a backward pass reads besides x and w.

    There is none for the input gradient of a larger stride: each pixel of x meets another set of
    taps, which makes stride^2 convolutions of it, and the layers that have a stride are first ones,
    whose images need no gradient. What space-to-depth turns into stride 1 is covered.
    """
    n, c = w.shape[0] // groups, w.shape[1]
    if folds(c, window, groups):
        c, window = c * window.stride[0] ** 2, folded_window(window)
    taps = window.kernel[0] * window.kernel[1]
    unit = window.stride == (1, 1)
    if direction == "input gradient" and not unit:
        return ("aten",)
    columns, summed = (c, n) if direction == "input gradient" else (n, c)
    sums = 64 if direction == "weight gradient" else taps * summed
    tiles = tilings(columns, sums, x, precision(x))
    read = (x, w) if dy is None else (x, w, dy)
    boxes = unit and window.dilation == (1, 1) and n % 8 == 0 and c % 8 == 0
    if boxes and has_descriptors(*read):
        if direction == "weight gradient":
            tiles += weight_box_tilings(x.shape[0], c, n, x.dtype)
        elif channel_block(summed):
            tiles += box_tilings(x.shape[0], columns, channel_block(summed), x.dtype)
    return ("aten", *tiles)


def precision(x: Tensor) -> str:
    """Of float32 products: TF32 where torch's own convolutions may use it."""
    switch = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    return "tf32" if x.dtype == torch.float32 and switch.fp32_precision == "tf32" else "ieee"


def forward(
    x: Tensor, w: Tensor, bias: Tensor | None, window: Window, groups: int, candidate: str
) -> Tensor:
    shape = (x.shape[0], w.shape[0], *_output_sides(x, window))
    last = is_channels_last(x) or is_channels_last(w)
    if folds(w.shape[1], window, groups):
        x, w = folded_maps(x, window, *shape[2:]), folded_weights(w, window)
        window = folded_window(window)
    y = _new_maps(x, shape)
    x, w = channels_last(x), channels_last(w)
    _convolve(x, w, bias, y, None, window, groups, True, False, candidate)
    return _laid_out(y, last)


def input_gradient(
    dy: Tensor, y: Tensor | None, x: Tensor, w: Tensor, window: Window, groups: int, candidate: str
) -> Tensor:
    """Of dy and y in channels_last; `y` where dy still needs the ReLU's mask."""
    last = is_channels_last(x) or is_channels_last(w)
    folding = folds(w.shape[1], window, groups)
    shape, used = x.shape, window
    if folding:
        s = window.stride[0]
        used = folded_window(window)
        sides = [side + k - 1 for side, k in zip(dy.shape[2:], used.kernel, strict=True)]
        shape, w = (x.shape[0], x.shape[1] * s * s, *sides), folded_weights(w, window)
    dx = _new_maps(x, shape)
    w, around = channels_last(w), used.mirrored()
    _convolve(dy, w, None, dx, y, around, groups, False, True, candidate)
    if folding:
        dx = unfolded_maps(dx, x, window)
    return _laid_out(dx, last)


def weight_gradient(
    dy: Tensor, y: Tensor | None, x: Tensor, w: Tensor, window: Window, groups: int, bias: bool,
    candidate: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of dy and y as above: gradients of weight and bias, empty unless it is asked for."""
    folding = folds(w.shape[1], window, groups)
    used, shape = window, w.shape
    if folding:
        x, used = folded_maps(x, window, *dy.shape[2:]), folded_window(window)
        shape = (w.shape[0], w.shape[1] * window.stride[0] ** 2, *used.kernel)
    x = channels_last(x)
    tile = named(candidate)
    rest = (shape[1], shape[0] // groups, used, groups, bias, precision(x), tile)
    if tile.form == "tma":
        parts = weight_gradient_boxes(x, dy, *rest)
    else:
        parts = weight_gradient_parts(x, dy, y, *rest)
    layout = suggest_memory_format(w)
    dw = torch.empty(shape, dtype=w.dtype, device=w.device, memory_format=layout)
    db = dy.new_empty(w.shape[0] if bias else 0)
    sum_of_parts(parts, dw, db)
    return unfolded_weights(dw, w, window) if folding else dw, db


def _convolve(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, mask: Tensor | None, window: Window,
    groups: int, relu: bool, transposed: bool, candidate: str,
) -> None:  # fmt: skip
    """Fills y; the descriptors' form is never asked to mask."""
    tile = named(candidate)
    if tile.form == "tma":
        convolve_boxes(x, w, bias, y, window, groups, relu, transposed, precision(x), tile)
        return
    convolve(x, w, bias, y, mask, window, groups, relu, transposed, precision(x), tile)


def _new_maps(x: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _output_sides(x: Tensor, window: Window) -> list[int]:
    return [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(x.shape[2:], *window, strict=True)
    ]


def _laid_out(maps: Tensor, last: bool) -> Tensor:
    """In torch's very strides: sides of one leave them open, and the next convolution reads them.

    `maps` is new memory, which a caller may have as it is.
    """
    layout = torch.channels_last if last else torch.contiguous_format
    if maps.is_contiguous(memory_format=layout) and is_channels_last(maps) == last:
        return maps
    return maps.clone(memory_format=layout)
