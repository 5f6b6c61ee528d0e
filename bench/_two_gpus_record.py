"""What a rank launches, awaits and computes in a training step, written down without computing it.

For two_gpus.py and the tests. The step is fastalex's own, rank 0 of two in torch's `fake` process
group, which sends nothing. `eager` runs it on tensors without memory; `compiled` runs the program
that inductor generates, with its C++ kernels and matrix products left out. In a process that
called `compiled` nothing else should be compiled: inductor would take the empty kernels again.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.output_code import CompiledFxGraph
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastalex import AlexNet
from fastalex.model import exchange
from fastalex.model.exchange import Group
from fastalex.train import modes, parallel
from fastalex.train.config import TrainConfig
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

RANKS = 2
CPU = torch.device("cpu")


class Launch(NamedTuple):
    sent: int
    """Bytes that a rank sends in it, and receives."""


class Wait(NamedTuple):
    launch: int
    """Which launch it waits for, counted from 0."""


class Compute(NamedTuple):
    flops: int
    """Of matrix products and convolutions."""


Event = Launch | Wait | Compute


def eager(config: TrainConfig) -> list[Event]:
    """A whole step of `config` (towers or hybrid, compile=False), in the program's order."""
    with _group("fake") as group, FakeTensorMode(), torch.random.fork_rng():
        model = AlexNet(1000, variant=config.variant, width=config.width)
        for module in model.modules():  # .to(memory_format=) fails on such tensors
            for name, p in module.named_parameters(recurse=False):
                if p.ndim == 4:
                    dense = torch.empty(p.shape, memory_format=torch.channels_last)
                    setattr(module, name, nn.Parameter(dense))
        step = TrainStep(model, config, CPU, group, modes.mode_of(config))
        images, labels = _batch(config)
        with _Recorder() as recorder, mock.patch.object(exchange, "AT_ONCE_ON_CPU", False):
            step(images, labels, Rates(0.0, 0.0, 0.0, 0.0), 0)
    launches = sum(isinstance(event, Launch) for event in recorder.events)
    # dist.all_reduce, hybrid's last word, waits by itself.
    return [*recorder.events, *([] if config.parallel == "towers" else [Wait(launches - 1)])]


def data(config: TrainConfig) -> list[Event]:
    """The same for --parallel data, on real tensors: DistributedDataParallel takes no others.

    What it sends depends on no batch. The group is one of gloo with a single member, since the
    fake one's answer does not satisfy it.
    """
    with _group("gloo") as group, torch.random.fork_rng():
        model = AlexNet(1000, variant=config.variant, width=config.width)
        model = model.to(memory_format=torch.channels_last)
        step = TrainStep(model, config, CPU, group, "data")
        images, labels = _batch(config)
        with _Recorder() as recorder:
            step(images, labels, Rates(0.0, 0.0, 0.0, 0.0), 0)
    return recorder.events


def compiled(config: TrainConfig, options: dict[str, Any] | None = None) -> list[Event]:
    """Forward and backward of `config` (towers or hybrid, compile=True) as inductor orders them.

    Args:
        options: of torch.compile; None: fastalex's own.
    """
    recorder = _Recorder(skip=True)
    run_program = CompiledFxGraph.__call__

    def recorded(program: CompiledFxGraph, inputs: Any) -> Any:
        with recorder:
            return run_program(program, inputs)

    changes: list[Any] = [
        mock.patch.object(CompiledFxGraph, "__call__", recorded),
        mock.patch.object(AsyncCompile, "cpp_pybinding", _no_kernel),
        inductor.patch(_ALONE),
    ]
    if options is not None:
        changes.append(mock.patch.object(parallel, "COMPILE_OPTIONS", options))
    with contextlib.ExitStack() as held:
        group = held.enter_context(_group("fake"))
        for change in changes:
            held.enter_context(change)
        model = AlexNet(1000, variant=config.variant, width=config.width)
        model = model.to(memory_format=torch.channels_last)
        key = torch.zeros(2, dtype=torch.int64)
        network = parallel.share_out(model, config, key, group, modes.mode_of(config))
        loss, _ = network.loss(*_batch(config))
        loss.backward()
        torch.compiler.reset()
    return recorder.events


_ALONE = {"force_disable_caches": True, "compile_threads": 1, "cpp.vec_isa_ok": False}
"""Inductor leaves nothing behind, starts no helpers and compiles nothing to try out the CPU."""


def _no_kernel(*source: Any) -> Callable[..., None]:
    return lambda *arguments: None


def _batch(config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Without values."""
    own = config.batch_size // (1 if config.parallel == "towers" else RANKS)
    images = torch.empty(own, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    return images, torch.zeros(own, dtype=torch.int64)


@contextlib.contextmanager
def _group(backend: str) -> Iterator[Group]:
    store, size = (FakeStore(), RANKS) if backend == "fake" else (dist.HashStore(), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=size)
    world: Any = dist.group.WORLD
    try:
        yield Group(world.group_name, 0, RANKS)
    finally:
        dist.destroy_process_group()


class _Recorder(TorchDispatchMode):
    """Notes what runs while entered.

    Args:
        skip: nothing but exchanges and views is to run; what should have been computed is memory
            as it comes.
    """

    def __init__(self, *, skip: bool = False) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._skip = skip
        self._launched: dict[int, int] = {}  # by storage
        self._launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("_c10d_functional", "c10d"):
            return self._exchange(func, args, kwargs)
        flops = _FLOPS.get(func.overloadpacket.__name__)
        if flops is not None:
            self.events.append(Compute(flops(args)))
        if not self._skip:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return kwargs.get("out", args[0])
        return _shaped_as(func, args, kwargs) if flops is not None else func(*args, **kwargs)

    def _exchange(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        if name == "wait_tensor":
            launch = self._launched.get(_storage(args[0]))
            if launch is None:
                raise AssertionError("a wait for what was not launched, or once more for the same")
            self.events.append(Wait(launch))
            return func(*args, **kwargs)
        given = sum(t.numel() * t.element_size() for t in _tensors(args))
        result = func(*args, **kwargs)
        self.events.append(Launch(given * _SENT[name](RANKS) // RANKS))
        for tensor in _tensors(result):
            self._launched[_storage(tensor)] = self._launches
        self._launches += 1
        return result


_SENT: dict[str, Callable[[int], int]] = {
    "all_gather_into_tensor": lambda k: k * (k - 1),
    "reduce_scatter_tensor": lambda k: k - 1,
    "allreduce_": lambda k: 2 * (k - 1),
}
"""Bytes that each of k ranks sends in a ring, as multiples of one k-th of what it is given."""


def _convolution(args: Any) -> int:
    x, weight, _, stride, padding = args[:5]
    size = [
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    ]
    return 2 * x.shape[0] * math.prod(size) * weight.numel()


def _convolution_backward(args: Any) -> int:
    dy, _, weight, mask = args[0], args[1], args[2], args[10]
    return 2 * dy.shape[0] * math.prod(dy.shape[2:]) * weight.numel() * sum(mask[:2])


def _product(args: Any) -> int:
    a, b = [t for t in args if isinstance(t, Tensor)][-2:]
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


_FLOPS: dict[str, Callable[[Any], int]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "mm": _product,
    "addmm": _product,
}
"""Not torch's counter, which takes the weight gradient of a convolution in groups for too much."""


def _shaped_as(func: Any, args: Any, kwargs: Any) -> Any:
    """What `func` would return, by shape and layout."""
    fake = FakeTensorMode()
    with fake:
        result = func(*tree_map_only(Tensor, fake.from_tensor, args), **kwargs)
    return tree_map_only(
        Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), result
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
