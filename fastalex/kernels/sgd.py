"""Momentum SGD with the learning rate inside the velocity (Krizhevsky et al. 2012, section 5).

    V <- momentum * V - lr * (g + weight_decay * W)
    W <- W + V
    C <- W, rounded                                         where a working copy is kept

Shapes  any; W, V, g and C of one parameter share shape and a dense layout (else ATen computes).
Dtypes  W, V float32; g and C float16, bfloat16 or float32; lr: one number on the device, so that
        a new rate is neither a new kernel nor a new CUDA graph. Arithmetic in float32.
Cost    bytes a weight: 16 for W and V, and g's and C's own: 20 with a float32 gradient, where
        torch's five passes move 52. Memory-bound. One launch a parameter: of AlexNet's 61 million
        weights 58.6 million lie in three matrices, and a step moves 1.2 GB, 290 us at 4.3 TB/s;
        beside that eight launches for the biases are little. Tables of pointers, which would join
        the launches, cannot pass through torch.compile.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastalex.kernels._aten_sgd import aten_step, share_a_dense_layout, take
from fastalex.kernels._choice import choose
from fastalex.kernels._launch import DTYPES, route, wrap_triton
from fastalex.kernels._triton import tl, triton

BLOCK = 1024


@torch.no_grad()
def momentum_sgd_(
    weights: Sequence[Tensor],
    velocities: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    *,
    copies: Sequence[Tensor] = (),
) -> None:
    """One step, in place, of every parameter in `weights`, by this module's formula.

    Args:
        weights, velocities: float32 for the kernel, any floating-point dtype for ATen.
        grads: in each weight's shape; for the kernel also float16 or bfloat16.
        lr: learning rate; a tensor of one element lets it change under a compiled step or a CUDA
            graph.
        momentum: share of the velocity that is kept.
        weight_decay: L2 coefficient; scaled by `lr`.
        copies: where to put the new weights in another dtype; one for each weight, or none at all.
    Raises:
        TypeError: something in a list is no tensor, such as the gradient of a frozen parameter.
        ValueError: the lists differ in length, or the tensors of a parameter in shape or device.
    """
    lists = [list(weights), list(velocities), list(grads), list(copies)]
    _check(lists)
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    calls: dict[tuple[str, torch.device], list[int]] = {}
    for i, (w, v, g) in enumerate(zip(weights, velocities, grads, strict=True)):
        covered = w.dtype == v.dtype == torch.float32 and g.dtype in DTYPES
        covered = covered and all(c.dtype in DTYPES for c in copies[i : i + 1])
        mode = route("momentum_sgd_", w, covered)
        calls.setdefault((mode, w.device), []).append(i)
    for (mode, device), which in calls.items():
        w, v, g, c = take(lists, which)
        if mode == "aten":
            aten_step(w, v, g, c, lr, momentum, weight_decay)
        else:
            rate = _on_device(lr, device)
            _momentum_sgd_(w, v, g, c, rate, momentum, weight_decay, mode)


def _on_device(lr: float | Tensor, device: torch.device) -> Tensor:
    """One number, filled in by the device itself: a copy from the CPU would wait for it."""
    if isinstance(lr, Tensor):
        return lr.to(device, torch.float32)
    return torch.full((), lr, dtype=torch.float32, device=device)


def _check(lists: list[list[Tensor]]) -> None:
    lengths = [len(each) for each in lists]
    if len({*lengths[:3], lengths[3] or lengths[0]}) > 1:
        raise ValueError(
            "momentum_sgd_: `weights`, `velocities`, `grads` and `copies` (if any) must be equally "
            f"long, got {lengths}"
        )
    for i in range(lengths[0]):
        parameter = [x for each in take(lists, [i]) for x in each]
        if not all(isinstance(x, Tensor) for x in parameter):
            raise TypeError(
                f"momentum_sgd_: parameter {i} is not all tensors; leave out those without gradient"
            )
        if len({(x.shape, x.device) for x in parameter}) > 1:
            raise ValueError(
                f"momentum_sgd_: the tensors of parameter {i} must agree in shape and device, got "
                + ", ".join(f"{tuple(x.shape)} on {x.device}" for x in parameter)
            )


@triton.jit
def _momentum_sgd_kernel(
    w_ptr, v_ptr, g_ptr, c_ptr, lr_ptr, momentum, weight_decay, n,
    HAS_DECAY: tl.constexpr, HAS_COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = at < n
    w = tl.load(w_ptr + at, mask=inside)
    v = tl.load(v_ptr + at, mask=inside)
    g = tl.load(g_ptr + at, mask=inside).to(tl.float32)
    lr = tl.load(lr_ptr).to(tl.float32)
    if HAS_DECAY:  # 0 * infinity would be NaN
        g += weight_decay * w
    v = momentum * v - lr * g
    w += v
    tl.store(v_ptr + at, v, mask=inside)
    tl.store(w_ptr + at, w, mask=inside)
    if HAS_COPY:
        tl.store(c_ptr + at, w.to(c_ptr.dtype.element_ty), mask=inside)


def _launch(
    w: Tensor,
    v: Tensor,
    g: Tensor,
    copy: list[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    n = w.numel()
    c = copy[0] if copy else g  # where there is none, something that nobody writes
    wrap_triton(_momentum_sgd_kernel)[(triton.cdiv(n, BLOCK),)](
        w, v, g, c, lr, momentum, weight_decay, n,
        HAS_DECAY=weight_decay != 0, HAS_COPY=len(copy) > 0, BLOCK=BLOCK,
    )  # fmt: skip


@torch.library.triton_op(
    "fastalex::momentum_sgd_", mutates_args={"weights", "velocities", "copies"}
)
def _momentum_sgd_(
    weights: list[Tensor],
    velocities: list[Tensor],
    grads: list[Tensor],
    copies: list[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    mode: str,
) -> None:
    lists = [weights, velocities, grads, copies]
    by_aten = []
    for i in range(len(weights)):
        w, v, g, *copy = [x for each in take(lists, [i]) for x in each]
        if _pick(w, v, g, copy, lr, momentum, weight_decay, mode) == "aten":
            by_aten.append(i)
        else:
            _launch(w, v, g, copy, lr, momentum, weight_decay)
    if by_aten:
        w, v, g, c = take(lists, by_aten)
        aten_step(w, v, g, c, lr, momentum, weight_decay)


def _pick(
    w: Tensor,
    v: Tensor,
    g: Tensor,
    copy: list[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    mode: str,
) -> str:
    if not share_a_dense_layout(w, v, g, *copy):
        return "aten"

    def trial(candidate: str, w: Tensor, v: Tensor, g: Tensor, lr: Tensor, *copy: Tensor) -> None:
        _momentum_sgd_([w], [v], [g], list(copy), lr, momentum, weight_decay, candidate)

    operands = (w, v, g, lr, *copy)
    return choose("momentum_sgd_", "step", mode, ("aten", "triton"), trial, operands)
