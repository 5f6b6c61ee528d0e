"""In which way a config shares a step among ranks, and in how many parts a batch goes through.

For `fastalex.train` and the commands. The ways themselves are `fastalex.train.parallel`.
"""

from typing import Literal

from fastalex.errors import UsageError
from fastalex.model import VARIANTS
from fastalex.model.alexnet import scaled
from fastalex.model.towers import has_towers
from fastalex.model.variants import BatchNorm
from fastalex.train.config import TrainConfig

Mode = Literal["one", "towers", "data", "hybrid"]


def mode_of(config: TrainConfig) -> Mode:
    """The way in which `config` shares a step ("auto", which has to be timed, aside).

    Raises:
        UsageError: the variant, the number of GPUs or the batch does not go that way.
    """
    if config.gpus == 1:
        return "one"
    by_tower = config.gpus == 2 and has_towers(VARIANTS[config.variant])
    assert config.parallel != "auto"
    mode = config.parallel or ("towers" if by_tower else "data")
    if mode == "towers" and not by_tower:
        why = f"there are {config.gpus} GPUs" if config.gpus != 2 else (
            f"variant {config.variant} is not made of two"
        )  # fmt: skip
        raise UsageError(f"--parallel towers: {why}; choose data or hybrid")
    micro_batches(config, mode)
    return mode


def own_images(config: TrainConfig, mode: Mode) -> int:
    """How many of a batch's images a rank is given."""
    return config.batch_size // (config.gpus if mode in ("data", "hybrid") else 1)


def micro_batches(config: TrainConfig, mode: Mode) -> int:
    """Parts of a batch that go through one behind the other: 1 with batch norm, else 2, unless set.

    Raises:
        UsageError: the batch cannot be divided so.
    """
    if mode in ("data", "hybrid") and config.batch_size % config.gpus:
        raise UsageError(
            f"--batch-size {config.batch_size}: --parallel {mode} divides it among "
            f"{config.gpus} GPUs; give a multiple of {config.gpus}"
        )
    if mode in ("one", "data"):
        return 1
    if mode == "hybrid" and (units := scaled(4096, config.width)) % config.gpus:
        raise UsageError(
            f"--gpus {config.gpus}: --parallel hybrid shares the {units} units of fc6 and fc7 "
            "evenly; give a number of GPUs that divides them, or choose data"
        )
    each = own_images(config, mode)
    norms = any(isinstance(layer, BatchNorm) for layer in VARIANTS[config.variant].features)
    if not isinstance(config.micro_batches, int):
        return 2 if each % 2 == 0 and not norms else 1
    if norms and config.micro_batches > 1:
        raise UsageError(
            f"--micro-batches {config.micro_batches}: variant {config.variant} normalizes over "
            "the whole batch; leave it out"
        )
    if each % config.micro_batches:
        raise UsageError(
            f"--micro-batches {config.micro_batches} does not divide the {each} images that a "
            "rank has of each batch"
        )
    return config.micro_batches
