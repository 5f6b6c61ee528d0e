"""ReLU, then dropout (Krizhevsky et al. 2012, sections 3.1 and 4.2), the mask never stored.

For anyone. The mathematics and the kernels are in `_dropout.py`, with a key that torch's generator
draws and an element's place e in memory for its row and unit, e // 1024 and e % 1024.

There is nothing to choose: no op of torch's takes a seed from the device, so "auto" means the
kernel on a GPU, and torch's two ops on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastalex.kernels._dropout import BLOCK, Dropout
from fastalex.kernels._launch import public, route

PLACE = [BLOCK, 0, 0, 0]
"""Units a row; layer, first row and first unit."""


@public
def relu_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, *, inverted: bool = True
) -> Tensor:
    """`dropout(relu(input), p, training)` of `torch.nn.functional`, in one pass each way.

    The mask comes from a seed that torch's generator of the device draws: `torch.manual_seed`
    governs it, and nothing waits for the device. Where ATen computes (on a CPU, in float64) it is
    bit for bit the mask of torch's two ops; the kernel's is another of the same law.

    Args:
        input: any shape and layout; float16, bfloat16 or float32 for the kernel.
        p: share of the elements that become zero.
        training: False leaves out the dropout.
        inverted: scale what survives by 1 / (1 - p) in training, as torch does. False is the
            paper's dropout: no scale in training, all outputs times 1 - p otherwise.
    Returns: shape, dtype and layout of relu(input). What is dropped of infinity or NaN is NaN, as
        in torch. The gradient of a dropped element is 0: as in torch for a finite dy; where dy is
        not, torch's is NaN if the element was positive.
    Raises:
        ValueError: `p` outside 0..1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"relu_dropout: `p` must be between 0 and 1, got {p}")
    mode = route("relu_dropout", input, covered=training and 0 < p < 1)
    if mode != "aten":
        key = torch.randint(2**63 - 1, (2,), device=input.device)
        return Dropout.apply(input, key, p, inverted, True, PLACE, mode)
    rectified = F.relu(input)
    if inverted:
        return F.dropout(rectified, p, training)
    if training:
        return rectified * torch.empty_like(rectified).bernoulli_(1 - p)
    return rectified * (1 - p)
