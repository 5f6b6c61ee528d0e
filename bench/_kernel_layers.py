"""How the operands, providers and costs of one op at one shape are made. For _kernel_cases.py.

On a GPU in bfloat16, channels_last, at batch 128 and 1024; on a CPU in float32 at batch 8.
"""

from functools import partial

import torch
import torch.nn.functional as F
from _kernel_peers import (
    conv_relu,
    conv_relu_cudnn,
    conv_relu_split,
    fused_sgd,
    lrn,
    lrn_pool,
    momentum_step,
    momentum_step_by_hand,
)
from _kernel_work import Function, Op, Pass, Step, Work, autocast, compiled, ours, size, within
from _machine import DEVICE, GPU
from torch import Tensor

from fastalex import AlexNet, kernels

DTYPE = torch.bfloat16 if GPU else torch.float32
BATCHES = (128, 1024) if GPU else (8,)
NORM_FLOPS = (11, 22)
"""An element's, forward and backward: squares, the window's sum, the power, the products."""


def _maps(batch: int, channels: int, side: int) -> Tensor:
    x = torch.randn(batch, channels, side, side, device=DEVICE).to(DTYPE)
    return x.to(memory_format=torch.channels_last)


def in_both_layouts(providers: dict[str, Function]) -> tuple[dict[str, Function], tuple[str, ...]]:
    """On a CPU, stock torch also in its default layout; and who wants its operands in it."""
    if GPU:
        return providers, ()
    return providers | {"torch-nchw": providers["torch"]}, ("torch-nchw",)


def norm(channels: int, side: int, groups: int, pool: bool, relu: bool, batch: int) -> Work:
    x = _maps(batch, channels, side)
    shape = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0, "groups": groups}
    if pool:
        op = partial(
            kernels.local_response_norm_max_pool2d, kernel_size=3, stride=2, relu=relu, **shape
        )
        stock = partial(lrn_pool, relu=relu, groups=groups)
    else:
        op = partial(kernels.local_response_norm, relu=relu, **shape)
        stock = partial(lrn, relu=relu, groups=groups)
    providers = ours(op, GPU) | {"torch": stock}
    if GPU:
        providers |= {
            "torch-autocast": autocast(stock),
            "torch-compiled": compiled(stock),
            "aten-compiled": within("aten", compiled(op)),
        }
    y, forward, backward = size(stock(x)), *(x.numel() * each for each in NORM_FLOPS)
    passes = {
        "forward": Pass(size(x) + y, forward, wrt=(0,)),
        "backward": Pass(2 * size(x) + y, backward, wrt=(0,), backward=True),
    }
    return Op([x], *in_both_layouts(providers), passes, lambda got, x: stock(x))


def pool(channels: int, side: int, batch: int) -> Work:
    x = _maps(batch, channels, side)

    def op(x: Tensor) -> Tensor:
        return kernels.max_pool2d(x, 3, 2)

    def stock(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2)

    providers = ours(op, GPU) | {"torch": stock}
    if GPU:
        providers["torch-compiled"] = compiled(stock)
    moved, flops = size(x) + size(stock(x)), 8 * stock(x).numel()
    passes = {
        "forward": Pass(moved, flops, wrt=(0,)),
        "backward": Pass(moved, flops, wrt=(0,), backward=True),
    }
    return Op([x], *in_both_layouts(providers), passes, lambda got, x: stock(x))


def conv(
    channels: int, side: int, out: int, kernel: int, stride: int, padding: int, groups: int,
    batch: int,
) -> Work:  # fmt: skip
    x = _maps(batch, channels, side)
    w = torch.randn(out, x.shape[1] // groups, kernel, kernel, device=DEVICE) * 0.05
    w = w.to(DTYPE).to(memory_format=torch.channels_last)
    b = torch.randn(out, device=DEVICE).to(DTYPE)
    settings = {"stride": stride, "padding": padding, "groups": groups}
    stock = partial(conv_relu, **settings)
    providers = ours(partial(kernels.conv2d_relu, **settings), GPU) | {"torch": stock}
    if GPU:
        providers |= {
            "cudnn-fused": partial(conv_relu_cudnn, **settings),
            "torch-compiled": compiled(stock),
        }
    if groups > 1:
        providers["torch-split"] = partial(conv_relu_split, **settings)
    y = stock(x, w, b)
    flops = 2 * y.numel() * w[0].numel()
    moved = size(x, w, y)
    passes = {
        "forward": Pass(moved, flops, wrt=(0, 1, 2) if channels > 3 else (1, 2)),
        "input-gradient": Pass(moved + size(y), flops, wrt=(0,), backward=True),
        "weight-gradient": Pass(moved + size(y), flops, wrt=(1, 2), backward=True),
    }
    reference = lambda got, *operands: stock(*operands)  # noqa: E731
    return Op(
        [x, w, b], *in_both_layouts(providers), passes, reference, forward_only=("cudnn-fused",)
    )


def linear(units_in: int, units: int, batch: int) -> Work:
    """A fully connected layer, which is torch's in fastalex, too."""
    x = torch.randn(batch, units_in, device=DEVICE).to(DTYPE)
    w = (torch.randn(units, units_in, device=DEVICE) * 0.01).to(DTYPE)
    b = torch.randn(units, device=DEVICE).to(DTYPE)
    flops, moved = 2 * batch * w.numel(), size(x, w) + size(F.linear(x, w))
    passes = {
        "forward": Pass(moved, flops, wrt=(0, 1, 2)),
        "input-gradient": Pass(moved, flops, wrt=(0,), backward=True),
        "weight-gradient": Pass(moved, flops, wrt=(1, 2), backward=True),
    }
    reference = lambda got, *operands: F.linear(*operands)  # noqa: E731
    return Op([x, w, b], {"auto": F.linear}, (), passes, reference)


def dropout(inverted: bool, keyed: bool, batch: int) -> Work:
    x = torch.randn(batch, 4096, device=DEVICE).to(DTYPE)

    def stock(x: Tensor) -> Tensor:
        y = F.relu(x)
        return F.dropout(y) if inverted else y * torch.empty_like(y).bernoulli_(0.5)

    by_key = {"key": torch.tensor([0, 0], device=DEVICE), "relu": True} if keyed else {}
    op = kernels.keyed_dropout if keyed else kernels.relu_dropout
    op = partial(op, inverted=inverted, **by_key)
    providers = ours(op, GPU) | {"torch": stock}
    if GPU:
        providers["torch-compiled"] = compiled(stock)
    passes = {
        "forward": Pass(2 * size(x), 2 * x.numel(), wrt=(0,)),
        "backward": Pass(3 * size(x), 2 * x.numel(), wrt=(0,), backward=True),
    }
    scale = 2.0 if inverted else 1.0
    return Op([x], providers, (), passes, lambda got, x: F.relu(x) * (got != 0) * scale)


def sgd(network: str, halves: bool, batch: int) -> Work:
    """The whole network's parameters; with `halves`, gradients in and copies out in bfloat16."""
    with torch.device("meta"):
        shapes = [p.shape for p in AlexNet(variant=network).parameters()]
    lists = [[torch.randn(shape, device=DEVICE) for shape in shapes] for _ in range(3)]
    if halves:
        lists[2] = [g.bfloat16() for g in lists[2]]
        lists.append([g.clone() for g in lists[2]])
    lr = torch.tensor(1e-3, device=DEVICE)
    step = partial(momentum_step, kernels.momentum_sgd_, lr)
    providers = ours(step, GPU) | {"torch": within("aten", step)}
    if GPU:
        providers["torch-compiled"] = within("aten", compiled(step))
    if not halves:
        providers["torch-fused"] = fused_sgd()
    moved = size(*lists) + size(*lists[:2])
    reference = partial(momentum_step_by_hand, lr)
    passes = {"step": Pass(moved, 6 * sum(w.numel() for w in lists[0]))}
    return Step(lists, providers, passes, reference)


def images(side: int, blocks: int, padding: tuple[int, int], batch: int) -> Work:
    x = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=DEVICE)
    mean = torch.full((256, 256, 3), 120.0, device=DEVICE)
    lighting = torch.randn(batch, 3, device=DEVICE)
    corner = torch.randint(0, 257 - side, (batch, 2), device=DEVICE)
    flip = torch.arange(batch, device=DEVICE) % 2

    def op(x: Tensor, mean: Tensor, lighting: Tensor) -> Tensor:
        return kernels.images(
            x, mean, lighting, corner=corner, flip=flip, dtype=DTYPE, space_to_depth=blocks,
            padding=padding,
        )  # fmt: skip

    providers = ours(op, GPU) | {"torch": within("aten", op)}
    if GPU:
        providers["torch-compiled"] = within("aten", compiled(op))
    passes = {"forward": Pass(size(x, mean) + size(op(x, mean, lighting)), 3 * x.numel())}
    reference = within("aten", lambda got, *o: op(*o))
    return Op([x, mean, lighting], providers, (), passes, reference)
