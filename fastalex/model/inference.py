"""What evaluation can leave out of a fully connected layer. For `FusedSequential`.

    y = scale * max(0, x W^T + b),    scale = 1 - p where a dropout of the paper's kind follows

is one matrix product, since scale > 0 may go inside: its alpha is scale, its bias scale * b, and
the ReLU is applied as the result is written (cuBLASLt's epilogue on a GPU).

Under autocast a float32 weight is cast at each call: read, written, read again, 8 bytes a weight.
For a few images the product is no work beside that, so it takes the weight as it is, 4 bytes, and
rounds the result alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastalex.kernels._launch import autocast_dtype, cast
from fastalex.model.dropout import KeyedDropout
from fastalex.model.layers import UnscaledDropout

FEW = 16
"""Images; with more, arithmetic in float32 outweighs the cast."""


def may_be_one_product(linear: nn.Linear, x: Tensor) -> bool:
    """Nobody asks for gradients or transforms; torch.compile finds such fusions by itself."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and linear.bias is not None
        and x.dim() == 2
        and type(x) is Tensor
    )


def scale_of(dropout: nn.Dropout | KeyedDropout | None) -> float:
    """What a dropout multiplies by in evaluation."""
    if isinstance(dropout, KeyedDropout):
        return 1.0 if dropout.inverted else 1 - dropout.p
    return 1 - dropout.p if isinstance(dropout, UnscaledDropout) else 1.0


def linear_relu(linear: nn.Linear, x: Tensor, scale: float) -> Tensor:
    """(B, in) to (B, out), in autocast's dtype where that is on."""
    weight, bias = linear.weight, linear.bias
    result = autocast_dtype(x)
    if result is not None:
        few = len(x) <= FEW and weight.dtype == torch.float32
        dtype = torch.float32 if few else result
        x, weight, bias = cast(x, dtype), cast(weight, dtype), cast(bias, dtype)
    if scale != 1:
        bias = bias * scale
    product: Any = getattr(torch, "_addmm_activation")  # noqa: B009 - not in torch's stubs
    with torch.autocast(x.device.type, enabled=False):
        y = product(bias, x, weight.t(), alpha=scale)
    return y if result is None else cast(y, result)
