"""How the ops of this package reach a kernel: the mode in force, and the launch itself.

For the op files beside this one. An op asks `route` once, at its public entry, whether a call may
go to Triton, and hands the answer, a word, down to its `torch.library.triton_op`s, forward and
backward. They ask `_choice.choose` which candidate to run and launch it through `wrap_triton`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastalex.kernels._triton import AVAILABLE, triton

Op = TypeVar("Op", bound=Callable[..., Any])

MODES = ("auto", "triton", "aten")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def _nothing():
    pass


INTERPRETED = AVAILABLE and not isinstance(_nothing, triton.JITFunction)
"""Triton read TRITON_INTERPRET=1 when it was imported: kernels run on CPU tensors."""


class _State:
    mode = "auto"


_state = _State()


class use:  # noqa: N801 - used like torch.set_grad_enabled
    """Which implementation the ops use from here on, in the whole process; or in a `with` block.

    "auto" (the default): on a GPU, whichever of Triton and cuDNN/ATen was measured to be quicker
        for this op, shape and dtype (see `report`); on a CPU, ATen.
    "triton": Triton wherever its kernels cover the arguments. On CPU tensors that is Triton's
        interpreter, for which TRITON_INTERPRET=1 must be set before fastalex is imported.
    "aten": PyTorch's own ops, always.

    A backward pass follows the mode of its forward pass. What float64 or uncommon arguments ask
    for is computed by ATen in every mode.
    Raises:
        ValueError: no such mode.
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"use: `mode` must be one of {', '.join(MODES)}; got {mode!r}")
        self.mode = mode
        self.before, _state.mode = _state.mode, mode

    def __enter__(self) -> None:
        _state.mode = self.mode

    def __exit__(self, *_: object) -> None:
        _state.mode = self.before

    def __repr__(self) -> str:
        return f"use({self.mode!r})"


def public(op: Op) -> Op:
    """A public op: hands tensors of other people's kinds, and torch.fx's proxies, to their own
    __torch_function__, as torch's ops do, and names itself in the error for what is no tensor.
    """

    @functools.wraps(op)
    def entry(input: Any, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function_unary(input):
            return handle_torch_function(entry, (input,), input, *args, **kwargs)
        if not isinstance(input, Tensor):
            name = type(input).__name__
            raise TypeError(f"{op.__name__}: `input` must be a torch.Tensor, got {name}")
        return op(input, *args, **kwargs)

    return entry  # pyright: ignore[reportReturnType]


def may_fuse(input: Tensor) -> bool:
    """Whether an op on this tensor's device may go to Triton at all, so that folding pays."""
    if _state.mode == "aten" or not AVAILABLE or not isinstance(input, Tensor):
        return False
    return input.is_cuda or (_state.mode == "triton" and INTERPRETED)


def route(op: str, input: Tensor, covered: bool) -> str:
    """ "aten" where a call of `op` is torch's business, else the mode for its triton_ops.

    `covered`: the kernel takes these arguments (dtype and device are looked at here).
    Raises:
        RuntimeError: mode "triton", CPU tensors, and no interpreter.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "aten"  # vmap, grad, jvp: the kernels have no rules for them
    mode = _state.mode
    if (
        mode == "aten"
        or not AVAILABLE
        or not covered
        or input.dtype not in DTYPES
        or input.numel() == 0
    ):
        return "aten"
    if input.is_cuda:
        return mode
    if mode == "auto" or input.device.type != "cpu":
        return "aten"
    if not INTERPRETED:
        raise RuntimeError(
            f"{op}: use('triton') on CPU tensors needs Triton's interpreter: set "
            "TRITON_INTERPRET=1 before fastalex is imported, or move the tensors to a GPU, or "
            "use('auto')"
        )
    return mode


def wrap_triton(kernel: Any) -> "_Launcher":
    """`torch.library.wrap_triton`, on the data's own device and also under the interpreter.

    It has that function's name because torch looks for calls of that name in a triton_op's source
    to find the kernels whose text belongs to the key of its compile cache.
    """
    return _Launcher(kernel)


class _Launcher:
    """`kernel[grid](*args)`: runs at once on real tensors, goes into the graph for traced ones."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            tensors = [a for a in args if isinstance(a, Tensor)]
            if all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors):
                with torch.cuda.device_of(tensors[0]):
                    self.kernel[grid](*args, **kwargs)
            elif not INTERPRETED:
                torch.library.wrap_triton(self.kernel)[grid](*args, **kwargs)
            elif any(isinstance(t, FunctionalTensor) for t in tensors):
                raise RuntimeError(
                    "torch.compile cannot trace Triton's interpreter; unset TRITON_INTERPRET, or "
                    "use('aten') around what is compiled"
                )

        return launch


def pair(size: Any) -> tuple[int, int] | None:
    """Rows' and columns' of what torch takes as one whole number or two; None for anything else."""
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    return sizes if len(sizes) == 2 and all(type(n) is int for n in sizes) else None


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), but for no cast no node: torch 2.11's compiler loses gradients behind one."""
    return x if x.dtype == dtype else x.to(dtype)


def is_channels_last(x: Tensor) -> bool:
    """Whether torch's ops would answer `x` (B, C, H, W) in channels_last; it need not be dense."""
    return suggest_memory_format(x) == torch.channels_last


def channels_last(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) with its channels side by side in memory: itself where it is so already."""
    return x.contiguous(memory_format=torch.channels_last)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives to a convolution's operands here; None outside autocast."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
