"""FusedSequential: runs neighbouring modules through one fused op; `accelerate` for any network.

For `fastalex.AlexNet` and for anyone's own network. The ops are `fastalex.kernels`'. What is fused
is found anew at each run, so that modules may be replaced, sliced, hooked and frozen as in any
nn.Sequential; names and parameters stay what they were.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from fastalex import kernels
from fastalex.kernels._launch import may_fuse
from fastalex.model.blocks import block_weight, is_in_blocks
from fastalex.model.dropout import KeyedDropout
from fastalex.model.inference import linear_relu, may_be_one_product, scale_of
from fastalex.model.layers import (
    LocalResponseNorm,
    MaxPool2d,
    UnscaledDropout,
    WholeWindowConv2d,
)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class FusedSequential(nn.Sequential):
    """nn.Sequential that runs these neighbours as one op each, with the same answer and gradients:

        Conv2d, ReLU            (then, on a GPU, the ReLU's backward in the norm's or pool's)
        [ReLU,] LocalResponseNorm[, MaxPool2d]
        [ReLU,] MaxPool2d
        ReLU, Dropout           (torch's, `UnscaledDropout` or `KeyedDropout`)
        Linear, ReLU[, Dropout] (in evaluation, without gradients, outside torch.compile)

    A module that anyone may be watching or has changed runs by itself: one with a hook of any kind,
    with a `forward` of its own (subclass or patched), or with an argument that no fused op has
    (padding_mode, ceil_mode, return_indices, a dilated pool).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        modules: list[Any] = list(self._modules.values())
        if not isinstance(input, torch.Tensor) or _has_any_global_hook():
            return super().forward(input)  # torch.fx's proxies, too: a tracer sees every module
        kinds = [*map(_kind, modules), "", ""]
        at = 0
        while at < len(modules):
            used, input = _run(modules, kinds, at, input)
            at += used
        return input

    def runs(
        self, input: torch.Tensor
    ) -> Iterator[tuple[range, Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]:
        """What `forward` does to `input`, op by op, for whoever wants to time or watch the ops.

        Each op runs here, too, to find the next one's input: batch norm counts that.

        Yields: the numbers of the modules that an op stands for, the op, and what it is given.
        """
        modules: list[Any] = list(self._modules.values())
        kinds, at = [*map(_kind, modules), "", ""], 0
        while at < len(modules):
            used, _ = _run(modules, kinds, at, input)
            ops = [(used, lambda x, at=at: _run(modules, kinds, at, x)[1])]
            if kinds[at] == "conv" and used > 2:  # two ops: the ReLU's backward is the second's
                rest = lambda x, at=at + 2: _norm_pool(modules, kinds, at, x, relu=True)[1]  # noqa: E731
                ops = [(2, partial(_conv_relu, modules[at], mask_gradient=False)), (used - 2, rest)]
            for count, op in ops:
                yield range(at, at + count), op, input
                input, at = op(input), at + count


def accelerate(model: AnyModule) -> AnyModule:
    """Makes `model` run its layers by fastalex's ops, wherever they stand; returns the same object.

    In place: each torch.nn.Sequential in it becomes a `FusedSequential`; each LocalResponseNorm and
    MaxPool2d runs by the op of its name, in a Sequential or not. Parameters, buffers, hooks,
    state_dict keys and the modules themselves stay; subclasses with code of their own are left
    alone. Under autocast a LocalResponseNorm then keeps its input's dtype, where torch's turns to
    float32.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: `model` must be a torch.nn.Module, got {type(model)}")
    for module in model.modules():
        if type(module) in _ACCELERATED:
            object.__setattr__(module, "__class__", _ACCELERATED[type(module)])
    return model


_ACCELERATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: FusedSequential,
    nn.LocalResponseNorm: LocalResponseNorm,
    nn.MaxPool2d: MaxPool2d,
}

_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    WholeWindowConv2d: "conv",
    nn.ReLU: "relu",
    nn.LocalResponseNorm: "norm",
    LocalResponseNorm: "norm",
    nn.MaxPool2d: "pool",
    MaxPool2d: "pool",
    nn.Linear: "linear",
    nn.Dropout: "dropout",
    UnscaledDropout: "dropout",
    KeyedDropout: "dropout",
}


def _kind(module: nn.Module) -> str:
    """What a fused op may take the module for; "" where it has to run by itself."""
    kind = _KINDS.get(type(module), "")
    if not kind or _is_watched(module):
        return ""
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return ""
    if isinstance(module, nn.MaxPool2d):
        plain = not module.ceil_mode and not module.return_indices
        return kind if plain and module.dilation in (1, (1, 1)) else ""
    return kind


def _is_watched(module: Any) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "_conv_forward" in module.__dict__
    )


def _run(
    modules: list[Any], kinds: list[str], at: int, x: torch.Tensor
) -> tuple[int, torch.Tensor]:
    """Runs the longest match that starts at `at`: the number of modules it took, and its output."""
    here, next_ = kinds[at], kinds[at + 1]
    if here == "conv" and next_ != "relu" and is_in_blocks(modules[at], x):
        return 1, F.conv2d(x, block_weight(modules[at]), modules[at].bias)
    if here == "conv" and next_ == "relu":
        folded = kinds[at + 2] in ("norm", "pool") and may_fuse(x)
        x = _conv_relu(modules[at], x, mask_gradient=not folded)
        if not folded:
            return 2, x
        used, x = _norm_pool(modules, kinds, at + 2, x, relu=True)
        return 2 + used, x
    if here == "linear" and next_ == "relu" and may_be_one_product(modules[at], x):
        after = modules[at + 2] if kinds[at + 2] == "dropout" else None
        if after is None or not after.training:
            return 2 + (after is not None), linear_relu(modules[at], x, scale_of(after))
    if here == "relu" and next_ and may_fuse(x) and not _seen_in_place(modules, at):
        if next_ == "dropout":
            return 2, _relu_dropout(modules[at + 1], x)
        if next_ in ("norm", "pool"):
            used, x = _norm_pool(modules, kinds, at + 1, x, relu=True)
            return 1 + used, x
    if here == "norm":
        return _norm_pool(modules, kinds, at, x, relu=False)
    if here == "pool":
        return _norm_pool(modules, kinds, at, x, relu=False)
    return 1, modules[at](x)


_MAKES_ITS_OUTPUT = (
    nn.Conv2d, WholeWindowConv2d, nn.Linear, nn.BatchNorm2d, nn.LocalResponseNorm,
    LocalResponseNorm, nn.MaxPool2d, MaxPool2d, nn.AvgPool2d,
)  # fmt: skip


def _seen_in_place(modules: list[Any], at: int) -> bool:
    """Whether somebody else may hold the tensor that an in-place ReLU is to overwrite."""
    if not modules[at].inplace:
        return False
    before = modules[at - 1] if at else None
    return type(before) not in _MAKES_ITS_OUTPUT or _is_watched(before)


def _conv_relu(conv: Any, x: torch.Tensor, mask_gradient: bool) -> torch.Tensor:
    if is_in_blocks(conv, x):
        return kernels.conv2d_relu(x, block_weight(conv), conv.bias, mask_gradient=mask_gradient)
    if _is_whole(conv):
        x = conv.padded(x)
    return kernels.conv2d_relu(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups,
        mask_gradient=mask_gradient,
    )  # fmt: skip


def _is_whole(conv: nn.Module) -> bool:
    return type(conv) is WholeWindowConv2d


def _norm_pool(
    modules: list[Any], kinds: list[str], at: int, x: torch.Tensor, relu: bool
) -> tuple[int, torch.Tensor]:
    """A normalization, a pool, or both in this order: what stands at `at`."""
    if kinds[at] == "pool":
        pool = modules[at]
        return 1, kernels.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, relu=relu)
    norm, pool = modules[at], modules[at + 1] if kinds[at + 1] == "pool" else None
    groups = norm.groups if isinstance(norm, LocalResponseNorm) else 1
    window = (norm.size, norm.alpha, norm.beta, norm.k)
    if pool is None or pool.padding not in (0, (0, 0)):
        return 1, kernels.local_response_norm(x, *window, groups=groups, relu=relu)
    return 2, kernels.local_response_norm_max_pool2d(
        x, *window, pool.kernel_size, pool.stride, groups=groups, relu=relu
    )


def _relu_dropout(dropout: nn.Dropout | KeyedDropout, x: torch.Tensor) -> torch.Tensor:
    if isinstance(dropout, KeyedDropout):
        return dropout.after_relu(x)
    inverted = not isinstance(dropout, UnscaledDropout)
    return kernels.relu_dropout(x, dropout.p, dropout.training, inverted=inverted)
