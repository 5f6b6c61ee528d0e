"""`profile`: times the units of a training step one by one, then the step as the trainer runs it.

For the command and for scripts. Each unit runs on what it is given in the real network, forward and
then backward through autograd, by itself; what it may take at the least follows from
`fastalex.profile.units`, and from a large matrix product and a large copy timed in the same run.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import fastalex
from fastalex import kernels
from fastalex.data.batch import Changes
from fastalex.model import AlexNet
from fastalex.profile.clock import Clock, Limits, limits
from fastalex.profile.units import Cost, Unit, optimizer_cost, units
from fastalex.train.build import input_format
from fastalex.train.config import TrainConfig
from fastalex.train.device import DTYPES, arithmetic
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

_STILL = Rates(0.0, 0.0, 0.0, 0.0)
"""Rates at which the step does all its work and the weights stay."""
_WARM_UP = {"cpu": 1, "cuda": 11}
"""Steps before those that count; the first ones compile and choose."""


@dataclass(frozen=True)
class Pass:
    """One pass of a row; times in milliseconds."""

    ms: float
    flops: int
    moved: int
    """Bytes."""
    limit_ms: float


@dataclass(frozen=True)
class Row:
    name: str
    passes: dict[str, Pass]
    """forward and backward; of the optimizer, update."""

    @property
    def ms(self) -> float:
        return sum(each.ms for each in self.passes.values())

    @property
    def flops(self) -> int:
        return sum(each.flops for each in self.passes.values())

    @property
    def moved(self) -> int:
        return sum(each.moved for each in self.passes.values())

    @property
    def limit_ms(self) -> float:
        return sum(each.limit_ms for each in self.passes.values())


@dataclass(frozen=True)
class Profile:
    """What `profile` found; `fastalex.profile.table` shows it."""

    config: TrainConfig
    device: str
    limits: Limits
    rows: tuple[Row, ...]
    step_ms: float
    """The whole step, measured by itself."""
    choices: kernels.Report
    """What the ops ran as; empty on a CPU, where that is ATen."""

    def to_json(self) -> dict[str, Any]:
        """As JSON has it; times in ms, traffic in bytes."""
        return {
            "config": self.config.to_json(),
            "device": self.device,
            "versions": {"fastalex": fastalex.__version__, "torch": torch.__version__},
            "limits": asdict(self.limits),
            "rows": [asdict(row) for row in self.rows],
            "step_ms": self.step_ms,
            "choices": [asdict(choice) | {"winner": choice.winner} for choice in self.choices],
        }


def profile(config: TrainConfig, model: AlexNet, device: torch.device) -> Profile:
    """Profile one process's training step on random images.

    Args:
        config: its batch_size, precision, compile, label_smoothing and so on are the step's.
        model: on `device`; taken over, but its weights stay (in bf16 rounded to that).
    """
    clock, dtype = Clock(device), DTYPES[config.precision]
    bounds = limits(device, dtype, clock)
    step = TrainStep(model, config, device)
    images, labels = _batch(config, device)
    context = lambda: arithmetic(device, config.precision)  # noqa: E731
    step.inputs.put(images, labels, None)
    with context(), step.inputs.taken() as own:
        found = list(units(step.model, *own, config.label_smoothing, dtype.itemsize))
    rows = [_row(unit.name, unit.costs, _unit_ms(unit, clock, context), bounds) for unit in found]
    del found  # and the activations with it
    step_ms = _step_ms(step, *_staged(step, images, labels), clock)
    cost = optimizer_cost(sum(p.numel() for p in step.model.parameters()))
    update = {"update": _optimizer_ms(step, clock)}
    rows.append(_row("optimizer", {"update": cost}, update, bounds))
    cpu = f"the CPU ({torch.get_num_threads()} threads)"
    where = torch.cuda.get_device_name(device) if clock.on_gpu else cpu
    return Profile(config, where, bounds, tuple(rows), step_ms, kernels.report())


def _batch(config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the data pipeline would hand to the step."""
    side = input_format(config).size
    images = torch.randn(config.batch_size, 3, side, side, device=device)
    labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
    return images.contiguous(memory_format=torch.channels_last), labels


def _unit_ms(unit: Unit, clock: Clock, context: Callable[[], Any]) -> dict[str, float]:
    wrt = [x for x in (unit.input, *unit.parameters) if x.requires_grad]

    def forward() -> Tensor:
        with context():
            return unit.run(unit.input)

    y = forward()
    dy = torch.randn_like(y)

    def once() -> tuple[float, float]:
        there, y = clock.once(forward)
        return there, clock.once(lambda: torch.autograd.grad(y, wrt, dy))[0]

    times = [once() for _ in range(clock.rounds(sum(once())))]  # the first warms up
    there, back = (statistics.median(each) for each in zip(*times, strict=True))
    return {"forward": there, "backward": back}


def _staged(
    step: TrainStep, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Changes | None]:
    """The batch as the data pipeline hands it to the step: on a GPU as decoded pixels."""
    if not step.inputs.wants_pixels:
        return images, labels, None
    n, side, device = len(images), images.shape[-1], images.device
    pixels = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, device=device)
    changes = Changes(
        mean=torch.full((3,), 120.0, device=device),
        lighting=torch.zeros(n, 3, device=device),
        corner=None,
        flip=torch.zeros(n, dtype=torch.int32, device=device),
        std=input_format(step.config).std,
    )
    torch.cuda.synchronize(device)  # the inputs' stream does not wait for what has made these
    return pixels, labels, changes


def _step_ms(
    step: TrainStep, images: Tensor, labels: Tensor, changes: Changes | None, clock: Clock
) -> float:
    made = 0

    def call() -> None:
        nonlocal made
        with step.inputs.stream():
            step.inputs.put(images, labels, changes)
        step.run(_STILL, made)
        made += 1

    warm = [clock.once(call)[0] for _ in range(_WARM_UP["cuda" if clock.on_gpu else "cpu"])]
    rounds = 5 if clock.on_gpu else clock.rounds(warm[-1])
    return statistics.median(clock.in_a_row(call) for _ in range(rounds))


def _optimizer_ms(step: TrainStep, clock: Clock) -> float:
    """After a step, whose gradients are still there."""
    for parameter in step.model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return clock.median(step.optimizer.step)


def _row(name: str, costs: dict[str, Cost], ms: dict[str, float], bounds: Limits) -> Row:
    return Row(
        name,
        {
            which: Pass(
                ms[which], cost.flops, cost.moved, bounds.milliseconds(cost.flops, cost.moved)
            )
            for which, cost in costs.items()
        },
    )
