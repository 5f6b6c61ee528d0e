"""The order of the images and every random draw, from (seed, epoch, image id) and nothing else.

The generator is Philox 4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
with key (seed, epoch). Image i owns words 8i .. 8i + 7 of its stream:

    word 0      sort key: the epoch visits the images by rising key (ties by id)
    word 1, 2   window's top and left: (word >> 32) * positions >> 32, positions = 257 - size
    word 3      flip: its top bit
    word 4..7   three standard normals, by Box and Muller (1958)

So neither batch size, nor ranks, nor threads, nor where a run resumed can change an image's draws.
The streams are NumPy's guaranteed ones (NEP 19), not the distributions, which it may change.
"""

from dataclasses import dataclass

import numpy as np

from fastalex.errors import UsageError
from fastalex.inputs import STORED_SIDE as SIDE

_WORDS = 8


@dataclass(frozen=True, slots=True)
class Draws:
    """One epoch of a training set of n images; all but `order` are indexed by image id."""

    order: np.ndarray
    """(n,) int64: ids in the order they are visited."""
    top: np.ndarray
    """(n,) int64 in 0..256 - size."""
    left: np.ndarray
    """(n,) int64 in 0..256 - size."""
    flip: np.ndarray
    """(n,) bool."""
    normals: np.ndarray
    """(n, 3) float64: standard normal, for the lighting."""


def epoch_draws(seed: int, epoch: int, num_images: int, size: int) -> Draws:
    """Draws of windows of `size` x `size` for one epoch.

    Raises:
        UsageError: `seed` is not in 0..2^64 - 1 or `size` is not in 1..256.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed: must be in 0..2^64 - 1, not {seed}")
    if not 1 <= size <= SIDE:
        raise UsageError(f"size: the window must be 1..{SIDE} pixels wide, not {size}")
    key = np.array([seed, epoch], np.uint64)
    words = np.random.Philox(key=key).random_raw(_WORDS * num_images).reshape(-1, _WORDS)
    positions = np.uint64(SIDE + 1 - size)
    half = np.uint64(32)
    return Draws(
        order=np.argsort(words[:, 0], kind="stable"),
        top=((words[:, 1] >> half) * positions >> half).astype(np.int64),
        left=((words[:, 2] >> half) * positions >> half).astype(np.int64),
        flip=(words[:, 3] >> np.uint64(63)).astype(bool),
        normals=_normals(words[:, 4:]),
    )


def _normals(words: np.ndarray) -> np.ndarray:
    uniform = (words >> np.uint64(11)) * 2.0**-53  # [n, 4] in [0, 1)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, 0::2]))
    angle = 2.0 * np.pi * uniform[:, 1::2]
    first, third = (radius * np.cos(angle)).T
    second = radius[:, 0] * np.sin(angle[:, 0])
    return np.stack([first, second, third], axis=1)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; the tail smaller than a batch is dropped.

    Raises:
        UsageError: the training set is smaller than one batch.
    """
    if batch_size < 1:
        raise UsageError(f"batch size: must be 1 or more, not {batch_size}")
    if num_images < batch_size:
        raise UsageError(
            f"--batch-size {batch_size} is more than the {num_images} training images; "
            f"give {num_images} or less"
        )
    return num_images // batch_size


def check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    """Raises `UsageError` unless ranks can share batches of `batch_size` evenly."""
    if not 0 <= rank < world_size:
        raise UsageError(f"rank: must be in 0..{world_size - 1}, not {rank}")
    if batch_size < 1:
        raise UsageError(f"--batch-size must be 1 or more, not {batch_size}")
    if batch_size % world_size:
        raise UsageError(
            f"--batch-size must be a multiple of the {world_size} ranks, not {batch_size}"
        )


def batch_ids(draws: Draws, step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """Image ids of one rank's slice of a step's global batch of `batch_size` images."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return draws.order[start : start + share]
