"""Runs of `train` that two ranks go on with, for test_world_size.py.

Run by `fastalex.commands.ranks.run` as `two_ranks_train.py DATASET RUN...`: each run directory
bears the name of a way to share the step and is taken to step TO.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from fastalex.data import Dataset
from fastalex.train import TrainConfig, read_config, train
from fastalex.train.distributed import World, join

TO = 8


def shared(config: TrainConfig, mode: str) -> TrainConfig:
    """`config` for two ranks."""
    parts = "auto" if mode == "auto" else None
    return replace(config, gpus=2, parallel=mode, micro_batches=parts, steps=TO, timeout=60.0)


def go_on(world: World, dataset: Dataset, run: Path) -> None:
    metrics = train(shared(read_config(run), run.name), dataset, run, resume=True, world=world)
    counts = world.gather((metrics.images, metrics.loss))
    assert counts == [(len(dataset.val), metrics.loss)] * 2, counts  # each image once, on both


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:
        for run in sys.argv[2:]:
            go_on(world, Dataset.open(Path(sys.argv[1])), Path(run))
