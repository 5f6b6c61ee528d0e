"""KeyedDropout: the mask of the whole batch and layer, by whoever holds a part of them.

For networks that are computed in pieces (towers, slices of the batch, micro-batches) and are to
draw what one process would. Source of the mask: `fastalex.kernels.keyed_dropout`.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from fastalex import kernels
from fastalex.model.layers import UnscaledDropout

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class KeyedDropout(nn.Module):
    """Dropout of (rows, units...) by `fastalex.kernels.keyed_dropout`.

    Args:
        p: probability of zeroing, in training.
        key: (2,) int64, seed and step, on the inputs' device. Kept as it is, so that many modules
            may share one tensor, changed in place from step to step: no parameter, no buffer, not
            in a state_dict; `to` and `cuda` leave it where it is.
        inverted: True as torch.nn.Dropout: scaled by 1 / (1 - p) in training. False as the paper
            and `UnscaledDropout`: outputs times 1 - p in evaluation.
        layer: tells the dropouts of one network apart.
        first_rows: the inputs are so many runs of equally many rows, and run i begins with row
            first_rows[i] of the whole batch; may be assigned from call to call.
        first_unit: the unit of the whole layer that the inputs begin with.
    Raises:
        ValueError: the rows cannot be cut into so many runs; what `keyed_dropout` raises.
    """

    def __init__(
        self,
        p: float,
        key: torch.Tensor,
        *,
        inverted: bool = True,
        layer: int = 0,
        first_rows: tuple[int, ...] = (0,),
        first_unit: int = 0,
    ) -> None:
        super().__init__()
        self.p, self.key, self.inverted, self.layer = p, key, inverted, layer
        self.first_rows, self.first_unit = first_rows, first_unit

    def placed(self, first_rows: tuple[int, ...], first_unit: int) -> "KeyedDropout":
        """Another one, for another part of the batch or the layer."""
        return KeyedDropout(
            self.p, self.key, inverted=self.inverted, layer=self.layer,
            first_rows=first_rows, first_unit=first_unit,
        )  # fmt: skip

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self._dropped(input, relu=False)
        return input if self.inverted else input * (1 - self.p)

    def after_relu(self, input: torch.Tensor) -> torch.Tensor:
        """self(relu(input)), in training in one pass."""
        return self._dropped(input, relu=True) if self.training else self(F.relu(input))

    def extra_repr(self) -> str:
        return (
            f"p={self.p}, inverted={self.inverted}, layer={self.layer}, "
            f"first_rows={self.first_rows}, first_unit={self.first_unit}"
        )

    def _dropped(self, input: torch.Tensor, relu: bool) -> torch.Tensor:
        runs = len(self.first_rows)
        if not runs or input.shape[0] % runs:
            raise ValueError(
                f"KeyedDropout: {input.shape[0]} rows are not as many for each of `first_rows` "
                f"(={self.first_rows})"
            )
        parts = [
            kernels.keyed_dropout(
                run, self.key, self.p, relu=relu, inverted=self.inverted, layer=self.layer,
                first_row=first, first_unit=self.first_unit,
            )
            for run, first in zip(input.chunk(runs), self.first_rows, strict=True)
        ]  # fmt: skip
        return parts[0] if runs == 1 else torch.cat(parts)


def key_dropouts(model: AnyModule, key: torch.Tensor) -> AnyModule:
    """Puts a `KeyedDropout` in the place of each Dropout of `model`; returns `model`.

    Of torch.nn.Dropout and `UnscaledDropout` themselves, not of subclasses; their layers are 0, 1,
    ... in the order of `model.modules()`. All share `key`. The state_dict stays; hooks on what is
    replaced are lost.
    """
    keyed: dict[nn.Module, KeyedDropout] = {}
    for module in model.modules():
        if isinstance(module, nn.Dropout) and type(module) in (nn.Dropout, UnscaledDropout):
            inverted = type(module) is nn.Dropout
            keyed[module] = KeyedDropout(module.p, key, inverted=inverted, layer=len(keyed))
            keyed[module].train(module.training)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in keyed:
                parent._modules[name] = keyed[child]
    return model
