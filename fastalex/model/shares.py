"""A rank's share of a network: some rows of each parameter, and back to the whole.

For `fastalex.model.towers` and for whoever saves and loads what ranks train. A share is cut along
the first dimension, output channels or units, and rank r's stands r-th: tower A is channels
[0 : C / 2], as everywhere in this package. So everything that belongs to a parameter, its velocity
too, is cut and joined alike, and the names stay those of the whole network.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastalex.model.exchange import Group, gather_rows, put_together, share

Rows = Mapping[str, int]
"""Rows of the whole, by state_dict key, of what is cut; what is absent all ranks hold."""


def cut_modules(modules: Mapping[str, nn.Module], group: Group) -> dict[str, int]:
    """Reduce layers to this rank's share, in place; what has no channels of its own stays.

    A convolution of as many groups as ranks keeps one; one that sees all channels goes on seeing
    them. Normalization within towers becomes normalization within the one that is left.
    Args:
        modules: by their prefix in the state_dict, such as "features.0".
    Returns: `Rows`.
    """
    rows: dict[str, int] = {}
    for prefix, module in modules.items():
        layer: Any = module
        state = {k: v for k, v in [*layer.named_parameters(), *layer.named_buffers()] if v.ndim}
        if not state:
            if getattr(layer, "groups", 1) == group.size:
                layer.groups = 1
            continue
        rows |= {f"{prefix}.{key}": len(value) for key, value in state.items()}
        for key, value in state.items():
            mine = cut(value.detach(), group)
            setattr(layer, key, nn.Parameter(mine) if isinstance(value, nn.Parameter) else mine)
        _tell(layer, group)
    return rows


def _tell(layer: Any, group: Group) -> None:
    """The sizes that a layer states beside its parameters."""
    if isinstance(layer, nn.Conv2d):
        layer.groups = layer.groups // group.size or 1
        layer.out_channels = layer.weight.shape[0]
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features = layer.weight.shape[0]
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(layer.running_mean)  # pyright: ignore[reportArgumentType]
    else:
        raise AssertionError(f"no rule to cut {type(layer).__name__}")


def cut(whole: Tensor, group: Group) -> Tensor:
    """This rank's rows of (R, ...), in memory of their own and the same layout."""
    mine = share(len(whole), group)
    return whole[mine.start : mine.stop].clone()


def join(part: Tensor, rows: int, group: Group) -> Tensor:
    """The whole, (rows, ...), from every rank's share, in its layout; all ranks call it."""
    last = torch.channels_last
    nhwc = part.ndim == 4 and part.is_contiguous(memory_format=last)
    part = part.movedim(1, -1) if nhwc else part
    widest = -(-rows // group.size)
    padded = part.new_zeros((widest, *part.shape[1:]))
    padded[: len(part)] = part
    whole = put_together(gather_rows(padded, group), rows, group, dim=0)
    return whole.movedim(-1, 1) if nhwc else whole


def cut_state(state: Mapping[str, Tensor], rows: Rows, group: Group) -> dict[str, Tensor]:
    """A whole state_dict -> this rank's."""
    return {key: cut(value, group) if key in rows else value for key, value in state.items()}


def join_state(state: Mapping[str, Tensor], rows: Rows, group: Group) -> dict[str, Tensor]:
    """This rank's state_dict -> the whole one; all ranks call it."""
    return {
        key: join(value, rows[key], group) if key in rows else value for key, value in state.items()
    }
