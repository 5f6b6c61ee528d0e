"""Dropout that draws the same mask however a batch or a layer is cut into parts.

For anyone who computes one batch in several pieces: micro-batches, slices of the batch or halves of
a layer in several processes. The mathematics and the kernels are in `_dropout.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastalex.kernels._dropout import Dropout, kept, scale_of
from fastalex.kernels._launch import public, route


@public
def keyed_dropout(
    input: Tensor,
    key: Tensor,
    p: float = 0.5,
    *,
    relu: bool = False,
    inverted: bool = True,
    layer: int = 0,
    first_row: int = 0,
    first_unit: int = 0,
) -> Tensor:
    """`torch.nn.functional.dropout` whose mask is a function of its key and of an element's place.

    Whether an element is dropped depends on `key`, `layer`, `p`, its row in the whole batch and its
    unit in the whole layer, on nothing else: not on the device, the dtype, the implementation, nor
    on what else `input` holds. No generator is asked, and nothing waits for the device.

    Args:
        input: (rows, units...), any layout; units are numbered in row-major order. float16,
            bfloat16 or float32 for the kernel; ATen computes the rest with the same mask.
        key: (2,) int64 on `input`'s device: a seed, all 64 bits of it, and the number of the step,
            mod 2^32. It is read when the op runs: changed in place, it changes the masks of a
            captured CUDA graph. It must not change between a forward and its backward.
        p: share of the elements that become zero.
        relu: `input` goes through a ReLU first, in the same pass.
        inverted: scale what survives by 1 / (1 - p), as torch does; False is the paper's dropout.
        layer: tells the dropouts of one step apart.
        first_row, first_unit: the row in the whole batch and the unit in the whole layer of
            input[0, 0].
    Returns: shape and dtype of `input`, contiguous. What is dropped of infinity or NaN is NaN, as
        in torch. The gradient of a dropped element is 0; where dy is not finite, ATen's is NaN.
    Raises:
        ValueError: `p` outside 0..1; `input` of fewer than two dimensions; `key` is not as above;
            `layer`, `first_row` or `first_unit` outside 0..2^31 - 1.
    """
    _check(input, key, p, {"layer": layer, "first_row": first_row, "first_unit": first_unit})
    if p == 0:
        return F.relu(input) if relu else input
    rows = input.flatten(1).contiguous()
    units = rows.shape[1]
    mode = route("keyed_dropout", input, covered=p < 1)
    if mode != "aten":
        place = [units, layer, first_row, first_unit]
        y = Dropout.apply(rows, key, p, inverted, relu, place, mode)
        return y.view(input.shape)
    if relu:
        rows = F.relu(rows)
    if p == 1:
        return (rows * 0.0).view(input.shape)
    y = rows * kept(key, len(rows), units, p, layer, first_row, first_unit)
    return (y * scale_of(p, inverted) if inverted else y).view(input.shape)


def _check(input: Tensor, key: Tensor, p: float, places: dict[str, int]) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"keyed_dropout: `p` must be between 0 and 1, got {p}")
    if input.dim() < 2:
        raise ValueError(
            f"keyed_dropout: `input` must be (rows, units...), got shape {tuple(input.shape)}"
        )
    if key.shape != (2,) or key.dtype != torch.int64 or key.device != input.device:
        raise ValueError(
            "keyed_dropout: `key` must be a seed and a step, (2,) int64 on `input`'s "
            f"{input.device}; got {tuple(key.shape)} {key.dtype} on {key.device}"
        )
    for name, value in places.items():
        if not 0 <= value < 2**31:
            raise ValueError(f"keyed_dropout: `{name}` must be from 0 to 2^31 - 1, got {value}")
