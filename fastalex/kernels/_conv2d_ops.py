"""The triton_ops of conv2d_relu: forward and backward, each with torch's way and ours.

The forward is one choice; the backward is two, one for the gradient of the input and one for those
of the weight and bias, which `choose` makes apart. Where the output is given, so that the gradient
needs its mask, the mask is part of what is timed for either.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastalex.kernels._choice import choose
from fastalex.kernels._conv2d_kernels import Window
from fastalex.kernels._conv2d_passes import (
    candidates,
    forward,
    input_gradient,
    precision,
    weight_gradient,
)
from fastalex.kernels._launch import channels_last

aten = torch.ops.aten


@torch.library.triton_op("fastalex::conv2d_relu", mutates_args={})
def _conv2d_relu(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
) -> Tensor:
    arguments = (stride, padding, dilation, groups)

    def trial(name: str, x: Tensor, w: Tensor, bias: Tensor | None) -> object:
        return torch.ops.fastalex.conv2d_relu(x, w, bias, *arguments, name)

    window = _window(w, stride, padding, dilation)
    names = candidates(x, w, window, groups, "forward")
    settings = _settings(x, *arguments)
    pick = choose("conv2d_relu", "forward", mode, names, trial, (x, w, bias), settings)
    if pick == "aten":
        # cudnn_convolution_relu, the one call for both, turns NaN into 0
        return aten.convolution(x, w, bias, *arguments[:3], False, [0, 0], groups).relu_()
    return forward(x, w, bias, window, groups, pick)


@torch.library.triton_op("fastalex::conv2d_relu_backward", mutates_args={})
def _conv2d_relu_backward(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
    mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w and bias, empty where not asked for. `y` None: dy needs no mask."""
    arguments = (stride, padding, dilation, groups)
    window = _window(w, stride, padding, dilation)
    asked_x, asked_w, asked_b = output_mask

    def pick(direction: str, asked: list[bool]) -> str:
        def trial(name: str, dy: Tensor, y: Tensor | None, x: Tensor, w: Tensor) -> object:
            return torch.ops.fastalex.conv2d_relu_backward(dy, y, x, w, *arguments, asked, name)

        names = candidates(x, w, window, groups, direction, dy)
        if len(names) == 1:
            return names[0]
        settings = _settings(x, *arguments)
        return choose("conv2d_relu", direction, mode, names, trial, (dy, y, x, w), settings)

    pick_x = pick("input gradient", [True, False, False]) if asked_x else "aten"
    pick_w = pick("weight gradient", [False, True, asked_b]) if asked_w else "aten"
    left = [asked_x and pick_x == "aten", asked_w and pick_w == "aten"]
    left.append(asked_b and pick_w == "aten")
    if y is not None and (any(left) or "tma" in pick_x + pick_w):
        # one pass for all, as torch has it; descriptors bring memory to the matrix units unseen
        dy, y = aten.threshold_backward(dy, y, 0), None

    dx, dw, db = (dy.new_empty(0) for _ in range(3))
    if any(left):
        found = aten.convolution_backward(
            dy, x, w, [w.shape[0]], *arguments[:3], False, [0, 0], groups, left
        )
        dx, dw, db = (found[i] if left[i] else empty for i, empty in enumerate((dx, dw, db)))
    if not pick_x == pick_w == "aten":
        dy, y = channels_last(dy), None if y is None else channels_last(y)
    if pick_x != "aten":
        dx = input_gradient(dy, y, x, w, window, groups, pick_x)
    if pick_w != "aten":
        dw, db = weight_gradient(dy, y, x, w, window, groups, asked_b, pick_w)
    return dx, dw, db


def _window(
    w: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Window:
    return Window((w.shape[2], w.shape[3]), *((v[0], v[1]) for v in (stride, padding, dilation)))


def _settings(
    x: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> tuple[object, ...]:
    """What the times depend on besides the operands; of torch's switches, those that are on."""
    switches = {
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    on = (name for name, value in switches.items() if value)
    return tuple(stride), tuple(padding), tuple(dilation), groups, precision(x), *on


@register_flop_formula(torch.ops.fastalex.conv2d_relu)
def _forward_flops(x, w, *_, out_shape, **__) -> int:
    """Shapes in, as torch's own formulas have them: a multiplication and an addition a product."""
    b, _, rows, columns = out_shape
    return 2 * b * rows * columns * math.prod(w)


@register_flop_formula(torch.ops.fastalex.conv2d_relu_backward)
def _backward_flops(
    dy, y, x, w, stride, padding, dilation, groups, output_mask, *_, **__
) -> int:  # fmt: skip
    """As many for each gradient; torch's own formula counts grouped weight gradients twice over."""
    b, _, rows, columns = dy
    return (output_mask[0] + output_mask[1]) * 2 * b * rows * columns * math.prod(w)
