"""`train`: from a TrainConfig to a run directory with a trained network.

For the commands and for scripts, in one process or on every rank of a `World`.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import fastalex
from fastalex.data.shards import Dataset
from fastalex.train import checkpoint
from fastalex.train.config import TrainConfig, flag
from fastalex.train.distributed import ALONE, World, peers
from fastalex.train.evaluation import Metrics
from fastalex.train.fastest import fastest
from fastalex.train.rundir import alone, check_new, check_resumed, write_config
from fastalex.train.trainer import Trainer
from fastalex.train.watch import Watch


def abandon(error: Exception) -> None:
    """End the process at once: the main thread waits for a rank that will not come."""
    print(error, file=sys.stderr, flush=True)
    os._exit(1)


def train(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    announce: Callable[[TrainConfig, str], object] = lambda config, timings: None,
    world: World = ALONE,
    abandon: Callable[[Exception], None] = abandon,
) -> Metrics:
    """Train on `dataset`, into the run directory `run`.

    Args:
        run: a directory that is new or empty; with `resume` one that a run was started in, which
            goes on from its last checkpoint, or from the beginning where it has none yet.
        announce: called, on rank 0, once everything has been found in order, before the first step,
            with the config in which nothing is left to be timed, and a line on what was.
        world: the ranks, from `fastalex.train.distributed.join`; each calls `train`.
        abandon: has to end the process, with this error; for a rank that waits for one that hangs.

    Returns: the metrics of the last validation.

    Raises:
        UsageError: settings that no run can have, `run` not as said, a checkpoint of other data,
            ranks with different settings, data or versions.
        RunError: a loss that is not finite, a full disk, an image that cannot be decoded.
        PeerLost: another rank has gone.
        Stopped: SIGINT or SIGTERM, after saving.
    """
    config.check()
    with Watch(world, config.timeout, abandon) as watch, peers():
        return _train(config, dataset, run, resume, announce, world, watch)


def _train(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    resume: bool,
    announce: Callable[[TrainConfig, str], object],
    world: World,
    watch: Watch,
) -> Metrics:
    world.must_agree(_facts(config, dataset))
    world.first(lambda: check_resumed(config, run) if resume else check_new(run))
    # Before the directory is made: what cannot run leaves none behind.
    decided, timings = config, ""
    if world.size > 1 and "auto" in (config.parallel, config.micro_batches):
        decided, timings = fastest(config, len(dataset.classes), world)
    trainer = Trainer(decided, dataset, run, world)
    with contextlib.ExitStack() as held:

        def begin() -> None:
            run.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(run))

        world.first(begin)
        state = checkpoint.load(run) if resume else None
        if state is not None:
            trainer.load_state_dict(state)
        world.must_agree({"a checkpoint of step": trainer.step})
        world.first(lambda: (write_config(config, run), announce(decided, timings)))
        return trainer.run_to_end(watch)


@dataclass(frozen=True)
class _Data:
    """A dataset, the same wherever it lies."""

    fingerprint: str
    root: Path = field(compare=False)

    def __str__(self) -> str:
        return f"{self.root} (fingerprint {self.fingerprint[:8]})"


def _facts(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """What all ranks must have alike, as a message names it."""
    paths = ("data", "init_from")  # may be elsewhere on another machine
    options = {flag(k): v for k, v in config.to_json().items() if k not in paths}
    versions = {"fastalex": fastalex.__version__, "torch": torch.__version__}
    return {**options, "--data": _Data(dataset.fingerprint, dataset.root), **versions}
