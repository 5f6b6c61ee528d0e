"""How long a step on two GPUs should take: its program, and a small simulator of it.

For two_gpus.py and the tests. A `program` is the order of fastalex.model.towers and
fastalex.train.parallel, the same on both ranks. It is simulated with one resource that computes
and one link that carries, in each direction, one exchange after the other:

    a layer's pass      max(FLOPs / rate, bytes / memory rate) + PASS
    an exchange         LATENCY + bytes / link rate, from its launch on or when the link is free
    a wait              until the exchange is over: what it lasts is exposed
"""

from dataclasses import dataclass
from typing import NamedTuple

from _two_gpus_network import CLASSES, Layer, layers, parameters, segments
from _two_gpus_record import Compute, Event, Launch, Wait

PASS = 5e-6
"""Seconds that a layer's pass takes at least."""
LATENCY = 15e-6
"""Seconds of an exchange of nothing."""


@dataclass(frozen=True)
class Gpu:
    """A GPU and its link, as their makers have them; `EFFICIENCY` is what is assumed of that."""

    name: str
    flops: float
    """A second, bfloat16, dense."""
    memory: float
    """Bytes a second."""
    link: float
    """Bytes a second and direction."""


EFFICIENCY = {"matrix products": 0.3, "memory": 0.8, "link": 1.0}
GPUS = {
    "NVLink": Gpu("H200", 989e12, 4.8e12, 450e9),
    "PCIe": Gpu("A100 PCIe", 312e12, 1.94e12, 25e9),
}


class Work(NamedTuple):
    """What a compute step costs a rank."""

    flops: float = 0.0
    moved: float = 0.0
    """Bytes."""
    passes: int = 0

    def seconds(self, gpu: Gpu) -> float:
        product = self.flops / (gpu.flops * EFFICIENCY["matrix products"])
        memory = self.moved / (gpu.memory * EFFICIENCY["memory"])
        return max(product, memory) + PASS * self.passes


Step = Work | Launch | Wait
Program = list[Step]


def program(
    mode: str, batch: int, micro_batches: int = 1, *, half_gradients: bool = True
) -> Program:
    """A training step in bfloat16 on two ranks, or, with mode "one", on one.

    Args:
        mode: one, data, towers or hybrid.
        half_gradients: data: whether they travel in bfloat16.
    """
    if mode in ("one", "data"):
        return _replicated(batch, ranks=1 if mode == "one" else 2, half=half_gradients)
    return _shared(mode, batch, micro_batches)


def _replicated(batch: int, *, ranks: int, half: bool) -> Program:
    images = batch // ranks
    head = [layer for layer in layers() if layer.name.startswith("fc")]
    rest = layers()[: -len(head)]
    steps: Program = [_pass(layer, images) for layer in layers()]
    steps += [_pass(layer, images, backward=True) for layer in reversed(head)]
    buckets = [layer.weights for layer in reversed(head)]
    buckets.append(parameters(convolutions=True, fully_connected=False))
    size = 2 if half else 4
    travels = [Launch(size * count) for count in buckets] if ranks > 1 else []
    copies = sum(buckets) * 2 * (4 + 2) if ranks > 1 and half else 0
    steps += travels[:-1]
    steps += [_pass(layer, images, backward=True) for layer in reversed(rest)]
    steps += travels[-1:]
    steps += [Wait(number) for number in range(len(travels))]
    return [*steps, Work(moved=copies), _update(parameters(convolutions=True))]


def _shared(mode: str, batch: int, micro_batches: int) -> Program:
    """Towers and hybrid on two ranks."""
    parts, towers = segments(mode), mode == "towers"
    each = batch // micro_batches
    steps: Program = []
    number = 0
    sent = [0] * micro_batches

    def launch(m: int, size: int) -> None:
        nonlocal number
        steps.append(Launch(size))
        sent[m] = number
        number += 1

    def do(s: int, m: int, *, backward: bool = False) -> None:
        own = not towers and s == 0  # hybrid's convolutions: all channels of half the images
        steps.extend(
            _pass(
                layer, each // 2 if own else each,
                backward=backward, share=1 if own else 2, once=m == 0,
            )
            for layer in (reversed(parts[s]) if backward else parts[s])
        )  # fmt: skip

    if not towers:
        steps += [Launch(8 * batch // 2), Wait(0)]
        number = 1
    joins = [2 * each * part[0].reads // 2 for part in parts] + [2 * each * CLASSES // 2]
    for s in range(len(parts)):
        for m in range(micro_batches):
            steps += [Wait(sent[m])] if s else []
            do(s, m)
            launch(m, joins[s + 1])
    steps += [Wait(n) for n in sent]
    for s in reversed(range(len(parts))):
        for m in reversed(range(micro_batches)):
            steps += [Wait(sent[m])] if s < len(parts) - 1 else []
            do(s, m, backward=True)
            if s:
                launch(m, joins[s])
    convolutions = parameters(convolutions=True, fully_connected=False)
    if not towers:
        steps += [Launch(4 * convolutions), Wait(number)]
    held = parameters(convolutions=False) // 2 + convolutions // (2 if towers else 1)
    return [*steps, _update(held)]


def _pass(
    layer: Layer, images: int, *, backward: bool = False, share: int = 1, once: bool = True
) -> Work:
    """A layer whose channels `share` ranks divide among them, for one micro-batch.

    Args:
        once: of a step's micro-batches the one that pays for what is done once: weights cast to
            bfloat16, their gradient cast back.
    """
    whole = layer.sees_all or layer.name == "conv1"  # both towers see the image
    reads = layer.reads if whole else layer.reads / share
    moved = 2 * images * (reads + layer.writes / share)
    flops, weights = images * layer.flops / share, layer.weights / share
    if not backward:
        return Work(flops, moved + (2 + 6 * once) * weights, 1)
    moved += 2 * images * reads
    if not layer.flops:
        return Work(0.0, moved, 1)
    gradients = 1 if layer.name == "conv1" else 2
    return Work(gradients * flops, moved + (6 + 4 * once) * weights, gradients)


def _update(held: int) -> Work:
    """The optimizer: weight and velocity read and written, gradient read, in float32."""
    return Work(moved=5 * 4 * held, passes=1)


class Times(NamedTuple):
    step: float
    """Seconds."""
    exposed: float
    """Of it spent waiting for the link."""


def simulate(steps: Program, gpu: Gpu) -> Times:
    now = free = exposed = 0.0
    over: list[float] = []
    for step in steps:
        if isinstance(step, Work):
            now += step.seconds(gpu)
        elif isinstance(step, Launch):
            free = max(now, free) + travel(step.sent, gpu)
            over.append(free)
        else:
            wait = max(0.0, over[step.launch] - now)
            exposed += wait
            now += wait
    return Times(now, exposed)


def travel(sent: int, gpu: Gpu) -> float:
    return LATENCY + sent / (gpu.link * EFFICIENCY["link"])


def events(steps: Program) -> list[Event]:
    """The program as `_two_gpus_record` writes one down."""
    return [
        Compute(round(step.flops)) if isinstance(step, Work) else step
        for step in steps
        if not isinstance(step, Work) or step.flops
    ]
