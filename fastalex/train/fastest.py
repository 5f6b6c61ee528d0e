"""Times the ways to share a step among the ranks that are here, for --parallel and --micro-batches
auto. For `fastalex.train.start`; which is fastest depends on the links, see docs/two-gpus.md.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from fastalex.errors import UsageError
from fastalex.train.build import build_model, input_format
from fastalex.train.config import TrainConfig
from fastalex.train.distributed import World
from fastalex.train.modes import Mode, micro_batches, mode_of, own_images
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

WARM_UP, TIMED = 3, 5
"""Steps of each; the first of the warm-up compiles."""


def fastest(config: TrainConfig, num_classes: int, world: World) -> tuple[TrainConfig, str]:
    """`config` with the quickest `parallel` and `micro_batches` of those it leaves open, and a line
    that says how quick all were. Steps on random images, which leave nothing behind; all ranks call
    it and get the same.
    """
    timed: dict[str, tuple[float, TrainConfig]] = {}
    for candidate, mode in _candidates(config):
        parts = micro_batches(candidate, mode)
        name = mode if mode == "data" else f"{mode} in {parts} micro-batch{'es' * (parts > 1)}"
        if name not in timed:
            timed[name] = _seconds(candidate, mode, num_classes, world), candidate
    if not timed:
        mode_of(replace(config, parallel="hybrid"))  # says what does not fit
    rates = {name: config.batch_size / seconds for name, (seconds, _) in timed.items()}
    order = sorted(rates, key=rates.__getitem__, reverse=True)
    said = ", ".join(f"{name} {rates[name]:.0f}" for name in order)
    return timed[order[0]][1], f"timed, images/s: {said}; taken: {order[0]}"


def _candidates(config: TrainConfig) -> Iterator[tuple[TrainConfig, Mode]]:
    """What fits the variant, the batch and the number of ranks."""
    modes = ("towers", "data", "hybrid") if config.parallel == "auto" else (config.parallel,)
    parts = (1, 2, 4) if config.micro_batches == "auto" else (config.micro_batches,)
    for mode in modes:
        for count in parts:
            candidate = replace(config, parallel=mode, micro_batches=count)
            with contextlib.suppress(UsageError):
                yield candidate, mode_of(candidate)


def _seconds(config: TrainConfig, mode: Mode, num_classes: int, world: World) -> float:
    """The median time of a step on the slowest rank."""
    device = world.device(config.device, config.gpus)
    model = build_model(replace(config, init_from=None), num_classes).to(device)
    step = TrainStep(model, config, device, world.group, mode)
    size, own = input_format(config).size, own_images(config, mode)
    images = torch.randn(own, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(own, dtype=torch.int64, device=device)
    took = []
    for number in range(WARM_UP + TIMED):
        began = time.monotonic()
        loss, _ = step(images, labels, Rates(0.0, 0.0, 0.0, 0.0), number)
        loss.item()  # waits for the device
        took.append(time.monotonic() - began)
    torch.compiler.reset()
    return world.largest(torch.tensor([statistics.median(took[WARM_UP:])])).item()
