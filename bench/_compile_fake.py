"""torch on a GPU that is not here: the targets, and a mode in which the ops believe in one.

For compile_kernels.py. Tensors of the mode have sizes and strides but no memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.backends.compiler import GPUTarget

from fastalex import kernels

KIB = 1024


@dataclass(frozen=True)
class Target:
    """A GPU to compile for; `shared` is what one block may have of its shared memory, in bytes."""

    name: str
    gpu: GPUTarget
    capability: tuple[int, int]
    processors: int
    shared: int

    @property
    def is_amd(self) -> bool:
        return self.gpu.backend == "hip"


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", GPUTarget("cuda", 80, 32), (8, 0), 108, 163 * KIB),  # A100
        Target("sm_90", GPUTarget("cuda", 90, 32), (9, 0), 132, 227 * KIB),  # H100, H200
        Target("sm_100", GPUTarget("cuda", 100, 32), (10, 0), 148, 227 * KIB),  # B200
        Target("sm_120", GPUTarget("cuda", 120, 32), (12, 0), 170, 99 * KIB),  # RTX 5090
        Target("gfx942", GPUTarget("hip", "gfx942", 64), (9, 4), 304, 64 * KIB),  # MI300X
    )
}


@contextlib.contextmanager
def pretended(target: Target) -> Iterator[None]:
    """Tensors are fake, the one GPU is `target`, ops run both passes except in inference mode."""
    properties = SimpleNamespace(
        name=target.name,
        major=target.capability[0],
        minor=target.capability[1],
        multi_processor_count=target.processors,
        warp_size=target.gpu.warp_size,
        shared_memory_per_block=target.shared if target.is_amd else 48 * KIB,
    )
    if not target.is_amd:  # ROCm has no such field
        properties.shared_memory_per_block_optin = target.shared
    capability = target.capability
    public = {name: _in_training(getattr(kernels, name)) for name in kernels.__all__}
    apply = classmethod(_forward_and_backward)
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=capability),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(torch.version, "hip", "7.0" if target.is_amd else None),
        mock.patch.object(torch.autograd.Function, "apply", apply),
        torch.no_grad(),
        FakeTensorMode(),
        mock.patch.multiple(FakeTensor, create=True, **_METHODS),
        mock.patch.multiple(kernels, **public),
    ):
        yield


def data(x: torch.Tensor) -> torch.Tensor:
    """`x`, marked: the one kind of floating-point tensor that needs no gradient."""
    x.is_data = True
    return x


def _in_training(op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` on operands that need gradients: without a graph, nothing but the data says so."""

    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return op(*args, **kwargs)
        for x in args:
            floating = isinstance(x, torch.Tensor) and x.is_floating_point()
            if floating and not getattr(x, "is_data", False):
                x.requires_grad_()
        with _grad(True):
            return op(*args, **kwargs)

    return called


def _grad(enabled: bool) -> Any:
    """What `torch.is_grad_enabled` says; in truth it never is, for that asks for the device."""
    return mock.patch.object(torch, "is_grad_enabled", return_value=enabled)


class _Context:
    """What an autograd.Function keeps between its passes."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = [isinstance(a, torch.Tensor) and a.requires_grad for a in args]
        self.saved_tensors: tuple[Any, ...] = ()
        self.without_gradient: set[int] = set()

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *outputs: torch.Tensor) -> None:
        self.without_gradient = set(map(id, outputs))

    def set_materialize_grads(self, value: bool) -> None:
        pass


def _forward_and_backward(cls: Any, *args: Any) -> Any:
    """`Function.apply`, and its backward at once: autograd's engine cannot run without the GPU."""
    ctx = _Context(args)
    with _grad(False):
        if cls.setup_context is torch.autograd.Function.setup_context:
            result = cls.forward(ctx, *args)
        else:
            result = cls.forward(*args)
            cls.setup_context(ctx, args, result)
        if any(ctx.needs_input_grad):
            ys = result if isinstance(result, tuple) else (result,)
            wanted = [None if id(y) in ctx.without_gradient else torch.empty_like(y) for y in ys]
            cls.backward(ctx, *wanted)
    return result


def _indexed(x: torch.Tensor, index: Any) -> torch.Tensor:
    """x[index], by slices, integers and None."""
    at = 0
    for part in _spelled_out(index, x.dim()):
        if isinstance(part, slice):
            x = torch.ops.aten.slice.Tensor(x, at, *part.indices(x.shape[at]))
        else:
            x = x.unsqueeze(at) if part is None else x.select(at, part)
        at += not isinstance(part, int)
    return x


def _spelled_out(index: Any, dimensions: int) -> list[Any]:
    """One entry for each dimension, and None for each new one."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    rest = dimensions - sum(part is not None and part is not Ellipsis for part in parts)
    hole = parts.index(Ellipsis)
    return [*parts[:hole], *[slice(None)] * rest, *parts[hole + 1 :]]


_METHODS = {
    "__getitem__": _indexed,
    "contiguous": lambda x, **layout: torch.ops.aten.contiguous(x, **layout),
    "copy_": lambda x, source: torch.ops.aten.copy_(x, source),
}
"""Methods that ask for the device, which a torch without CUDA refuses, by the ops under them."""
