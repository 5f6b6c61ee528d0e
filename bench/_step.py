"""Who makes a whole training step: fastalex's `TrainStep`, and stock PyTorch in every usual way.

A step is zero_grad, forward with dropout, cross entropy, backward and the optimizer, on the same
images and labels. For bench_step.py. A provider is built twice: once on the gate's terms, once on
those that are timed.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from _gate import outcome
from _machine import DEVICE, GPU
from _measure import synchronize
from _peers import TowerNorm, TunedTowerNorm, peer_of
from _settings import GATE, Setting, Terms
from torch import Tensor

from fastalex import AlexNet
from fastalex.train.device import arithmetic
from fastalex.train.recorded import WARM_UP
from fastalex.train.schedule import Rates
from fastalex.train.staging import PLACES
from fastalex.train.step import TrainStep


class Running(Protocol):
    """A network in training."""

    def step(self) -> Tensor:
        """One whole step; the loss, on the device."""
        ...

    def weights(self) -> list[Tensor]:
        """The float32 parameters, conv1 to fc8, weight and bias."""
        ...


@dataclass(frozen=True)
class Provider:
    says: str
    """What it is, for the page."""
    build: Callable[..., Any]
    ours: bool = False
    half: bool = False
    """Computes in half precision."""
    compiled: bool = False
    """Takes torch.compile's time at each batch: gated once for a network."""
    slow: bool = False
    """Takes minutes to compile: comes last, and is cut first."""


@functools.lru_cache(maxsize=2)
def _template(setting: Setting, dropout: float) -> AlexNet:
    return setting.model(dropout)


def fresh(setting: Setting, dropout: float) -> AlexNet:
    """Ours on the CPU, the same weights each time."""
    return copy.deepcopy(_template(replace(setting, batch=1), dropout))


class Ours:
    """`fastalex.train.step.TrainStep` as the trainer runs it: on a GPU from pixels that the decoder
    would have left there, so that its time has in it what the peers find done.
    """

    def __init__(self, setting: Setting, terms: Terms, precision: str | None = None) -> None:
        config = replace(
            setting.config,
            dropout=terms.dropout,
            weight_decay=terms.weight_decay,
            precision=precision or setting.config.precision,
        )
        model = fresh(setting, terms.dropout).to(DEVICE)
        self._train = TrainStep(model.train(), config, DEVICE)
        self._rates = Rates(terms.lr, terms.lr, terms.lr, terms.lr)
        wants_pixels = self._train.inputs.wants_pixels
        self._images = setting.pixels() if wants_pixels else setting.images()
        self._changes = setting.changes() if wants_pixels else None
        self._labels, self._made = setting.labels(), 0
        if GPU:
            synchronize()  # the inputs' stream does not wait for what has made these
            self._until_recorded()

    def step(self) -> Tensor:
        with self._train.inputs.stream():
            self._train.inputs.put(self._images, self._labels, self._changes)
        loss, _ = self._train.run(self._rates, self._made)
        self._made += 1
        return loss

    def _until_recorded(self) -> None:
        """Steps of rate 0, which leave weights and velocities: the gate is to see a replay."""
        rates, self._rates = self._rates, Rates(0.0, 0.0, 0.0, 0.0)
        for _ in range(WARM_UP + PLACES):
            self.step()
        self._rates = rates

    def weights(self) -> list[Tensor]:
        return [w.detach().float().clone() for w in self._train.weights().values()]


class Peer:
    """Stock PyTorch: plain modules, autocast or float32, torch.optim.SGD, fused or as it comes."""

    def __init__(
        self, setting: Setting, terms: Terms, *, precision: str = "bf16",
        layout: torch.memory_format = torch.channels_last, norm: Any = TowerNorm,
        compile: dict[str, Any] | None = None, fused: bool = True,
    ) -> None:  # fmt: skip
        model = peer_of(fresh(setting, terms.dropout).to(DEVICE).train(), norm)
        self.model: Any = model.to(memory_format=layout)
        self.images = setting.images().contiguous(memory_format=layout)
        self.labels, self._precision = setting.labels(), precision
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=terms.lr, momentum=0.9, fused=fused,
            weight_decay=terms.weight_decay,
        )  # fmt: skip
        self._loss: Any = self._forward
        if compile is not None:
            self._loss = torch.compile(self._forward, fullgraph=True, dynamic=False, **compile)
        mode = (compile or {}).get("mode")
        self._marks_steps = GPU and mode in ("reduce-overhead", "max-autotune")

    def _forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with arithmetic(DEVICE, self._precision):  # pyright: ignore[reportArgumentType]
            return F.cross_entropy(self.model(images), labels)

    def step(self) -> Tensor:
        if self._marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self.images, self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def weights(self) -> list[Tensor]:
        return [w.detach().float().clone() for w in self.model.parameters()]


PLAIN = "eager" if GPU else "eager-bf16"
"""The provider whose error in half precision is the measure of the others'."""


def providers(setting: Setting) -> dict[str, Provider]:
    """In the order in which they are built."""
    return _on_a_gpu(setting) if GPU else _on_a_cpu(setting)


def _on_a_gpu(setting: Setting) -> dict[str, Provider]:
    from _captured import CapturedPeer  # it is made of a Peer

    def peer(says: str, **options: Any) -> Provider:
        build = functools.partial(Peer, **options)
        mode = (options.get("compile") or {}).get("mode")
        compiled = "compile" in options
        return Provider(says, build, half=True, compiled=compiled, slow=mode == "max-autotune")

    found = {
        "eager": peer("autocast, channels_last, fused SGD"),
        "fastalex": Provider("TrainStep", Ours, ours=True, half=True),
        "graph": Provider(
            "compiled, the LRN tuned by hand, whole step with fused SGD in one CUDA graph",
            CapturedPeer, half=True, compiled=True,
        ),
        "eager-lrn": peer("eager, the LRN tuned by hand", norm=TunedTowerNorm),
        "compile": peer("torch.compile", compile={}),
        "reduce-overhead": peer("torch.compile", compile={"mode": "reduce-overhead"}),
        "max-autotune": peer("torch.compile", compile={"mode": "max-autotune"}),
    }  # fmt: skip
    if setting.network == "torchvision":
        del found["eager-lrn"]
    return found


def _on_a_cpu(setting: Setting) -> dict[str, Provider]:
    precision = setting.config.precision
    fp32, default = {"precision": "fp32"}, torch.contiguous_format
    tuned = {"norm": TunedTowerNorm}

    def peer(says: str, **options: Any) -> Provider:
        half, compiled = options.get("precision") == "bf16", "compile" in options
        return Provider(says, functools.partial(Peer, **options), half=half, compiled=compiled)

    found = {
        "eager-bf16": peer("bf16 autocast, channels_last, fused SGD", precision="bf16"),
        "fastalex": Provider(f"TrainStep, {precision}", Ours, ours=True, half=precision != "fp32"),
        "fastalex-fp32": Provider(
            "TrainStep, fp32", functools.partial(Ours, precision="fp32"), ours=True
        ),
        "eager": peer("as it comes: fp32, default layout", **fp32, layout=default, fused=False),
        "eager-channels-last": peer("fp32, channels_last, fused SGD", **fp32),
        "eager-lrn": peer("the same, the LRN tuned by hand", **fp32, **tuned),
        "eager-lrn-bf16": peer("bf16 autocast, the LRN tuned by hand", precision="bf16", **tuned),
        "compile": peer("torch.compile, fp32, the LRN tuned by hand", **fp32, **tuned, compile={}),
        "compile-bf16": peer(
            "torch.compile, bf16, the LRN tuned by hand", precision="bf16", **tuned, compile={}
        ),
    }  # fmt: skip
    if precision == "fp32":  # where the CPU does not multiply bf16
        found = {n: p for n, p in found.items() if not n.endswith("bf16") and n != "fastalex-fp32"}
    if setting.network != "demo":
        found = {n: p for n, p in found.items() if not n.startswith("compile")}
    if setting.network == "torchvision":
        found = {n: p for n, p in found.items() if "-lrn" not in n}
    return found


def reference(setting: Setting) -> dict[str, Tensor]:
    """Loss and gradients of the plain network in float32, dropout off."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        peer = Peer(setting, GATE, precision="fp32", layout=torch.contiguous_format)
        return outcome(peer)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
