"""What ranks send each other within a step, launched and awaited apart, so that work fits between.

For `fastalex.model.towers` alone. Each exchange is an all-gather forward and its adjoint, a
reduce-scatter, backward; program order is the schedule, in eager and under torch.compile:

    sent = send(x, ...)       launches the all-gather of x         backward: awaits x's gradient
    ...                       what another micro-batch has to do
    y = receive(sent)         awaits and orders what came          backward: launches the
                                                                   reduce-scatter of y's gradient

with x the rank's part and y the whole. The logits end the network: every rank computes the whole
loss from the same gathered logits, so the gradient of its own part is a slice and nothing is sent.

The launch and the wait are torch's functional collectives. The public all-gathers wait at once (or
are deprecated), which is why the private names below are used, in this file only.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_c10d = torch.ops._c10d_functional

AT_ONCE_ON_CPU = True
"""Await what CPU tensors' exchanges bring where they are launched, unless compiled. With torch 2.13
gloo was seen to corrupt the heap, once in some minutes, while the caller computes beside it (with
torch's functional collectives alone, too), and processes of a CPU are there to try things out."""


class Group(NamedTuple):
    """The ranks that share a network."""

    name: str
    """Of the process group, as torch.distributed knows it."""
    rank: int
    size: int


class Sent(NamedTuple):
    """An exchange under way."""

    own: Tensor
    """What this rank sent, with its gradient."""
    coming: Tensor
    """Everyone's, one after the other, not to be read before `receive` has waited for it."""
    group: Group
    rows: bool


def send(x: Tensor, group: Group, *, rows: bool) -> Sent:
    """Launch the all-gather of `x`: (B, C) or (B, C, H, W), the same shape on all ranks.

    Args:
        rows: the ranks hold different images, to be stacked in order of rank; else the ranks hold
            other channels of the same images, to be put side by side.
    """
    own = _AwaitGradient.apply(x)
    with torch.no_grad():
        coming = _launch(_dense(_flat(own.detach(), rows)), group)
    return Sent(own, coming, group, rows)


def receive(sent: Sent) -> Tensor:
    """The whole: (ranks * B, C, ...) for rows, else (B, ranks * C, ...), then in channels_last."""
    return _Arrive.apply(sent.own, sent.coming, sent.group, sent.rows)


def send_logits(logits: Tensor, group: Group, classes: int) -> Sent:
    """Launch the all-gather of a rank's share (B, own classes) of the logits; see `share`."""
    widest = -(-classes // group.size)
    with torch.no_grad():
        padded = F.pad(logits.detach(), (0, widest - logits.shape[1]))
        coming = _launch(_dense(padded), group)
    return Sent(logits, coming, group, rows=False)


def receive_logits(sent: Sent, classes: int) -> Tensor:
    """All logits, (B, classes); the gradient goes to each rank's own, unsummed."""
    return _Logits.apply(sent.own, sent.coming, sent.group, classes)


def gather_rows(x: Tensor, group: Group) -> Tensor:
    """Everyone's `x` (B, ...), stacked in order of rank, without a gradient; waits."""
    with torch.no_grad():
        return _c10d.wait_tensor(_launch(_dense(x), group))


def sum_over_ranks(x: Tensor, group: Group) -> Tensor:
    """The sum of everyone's `x`, for a loss that is the sum of the ranks' losses; waits."""
    return _Sum.apply(x, group)


def share(count: int, group: Group, rank: int | None = None) -> range:
    """Which of `count` channels or units a rank holds: the first ranks have one more if need be."""
    rank = group.rank if rank is None else rank
    each, more = divmod(count, group.size)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))


def put_together(stacked: Tensor, count: int, group: Group, dim: int) -> Tensor:
    """The whole, `count` along `dim`, of the ranks' shares, padded to the widest and stacked."""
    pieces = enumerate(stacked.chunk(group.size))
    return torch.cat([p.narrow(dim, 0, len(share(count, group, r))) for r, p in pieces], dim)


class _AwaitGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return _c10d.wait_tensor(dy)


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own, coming, group, rows):
        ctx.arguments = group, rows, own.shape
        whole = _c10d.wait_tensor(coming)
        if rows:
            return whole.view_as(whole)
        b, c, *size = own.shape
        whole = whole.reshape(group.size, -1, c).transpose(0, 1).reshape(b, *size, -1)
        return whole.movedim(-1, 1)

    @staticmethod
    def backward(ctx, dy):
        group, rows, shape = ctx.arguments
        b, c, *size = shape
        if not rows:
            dy = dy.movedim(1, -1).reshape(-1, group.size, c).transpose(0, 1).reshape(-1, c)
        dx = _begun(_c10d.reduce_scatter_tensor(_dense(dy), "sum", group.size, group.name))
        if not rows:
            dx = dx.reshape(b, *size, c).movedim(-1, 1)
        return dx, None, None, None


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own, coming, group, classes):
        ctx.mine = share(classes, group)
        return put_together(_c10d.wait_tensor(coming), classes, group, dim=1)

    @staticmethod
    def backward(ctx, dy):
        return dy[:, ctx.mine.start : ctx.mine.stop], None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _c10d.wait_tensor(_c10d.all_reduce(x, "sum", group.name))

    @staticmethod
    def backward(ctx, dy):
        return _c10d.wait_tensor(_c10d.all_reduce(_dense(dy), "sum", ctx.group.name)), None


def _launch(x: Tensor, group: Group) -> Tensor:
    return _begun(_c10d.all_gather_into_tensor(x, group.size, group.name))


def _begun(x: Tensor) -> Tensor:
    at_once = AT_ONCE_ON_CPU and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return _c10d.wait_tensor(x) if at_once else x


def _flat(x: Tensor, rows: bool) -> Tensor:
    """As it is sent: for channels (B * H * W, C), which is a view of what is in channels_last."""
    return x if rows or x.ndim == 2 else x.movedim(1, -1).reshape(-1, x.shape[1])


def _dense(x: Tensor) -> Tensor:
    """x.contiguous(), but no node where nothing changes: torch 2.11 loses gradients behind one."""
    return x if x.is_contiguous() else x.contiguous()
