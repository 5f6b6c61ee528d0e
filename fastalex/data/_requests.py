"""What to make of which images, batch by batch. For `fastalex.data.pipeline`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fastalex.data.sampler import batch_ids, epoch_draws, steps_per_epoch
from fastalex.data.shards import Dataset
from fastalex.inputs import STORED_SIDE as SIDE
from fastalex.inputs import InputFormat


@dataclass(frozen=True, slots=True)
class Request:
    """One batch of n windows: (pixels - mean image where asked - offset) / std."""

    ids: np.ndarray
    """(n,) int64."""
    corner: np.ndarray
    """(n, 2) int32: top and left."""
    flip: np.ndarray
    """(n,) int32: 0 or 1."""
    offset: np.ndarray
    """(n, 3) float32, in the network's colour order: mean colour where asked, less the lighting."""
    std: np.ndarray
    """(n, 1) float32: the format's, times the lighting's shrink."""


def train_requests(
    dataset: Dataset,
    format: InputFormat,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    step: int,
    lighting: Callable[[int], float],
    lighting_shrink: bool,
    flip: bool,
    rank: int,
    world_size: int,
) -> Iterator[Request]:
    """Endless, from (epoch, step)."""
    num_images = len(dataset.train)
    steps = steps_per_epoch(num_images, batch_size)
    axes = dataset.eigenvectors * np.sqrt(dataset.eigenvalues)  # [rgb, axis]
    while True:
        draws = epoch_draws(seed, epoch, num_images, format.size)
        amplitude = lighting(epoch)
        shrink = 1.0 + amplitude if lighting_shrink else 1.0
        for at in range(step, steps):
            ids = batch_ids(draws, at, batch_size, rank, world_size)
            noise = amplitude * (draws.normals[ids] @ axes.T)  # [n, rgb]
            yield Request(
                ids=ids,
                corner=np.stack([draws.top[ids], draws.left[ids]], 1).astype(np.int32),
                flip=(draws.flip[ids] & flip).astype(np.int32),
                offset=_in_order(_mean_color(dataset, format) - noise, format),
                std=np.full((len(ids), 1), format.std * shrink, np.float32),
            )
        epoch, step = epoch + 1, 0


def eval_requests(
    dataset: Dataset,
    format: InputFormat,
    *,
    batch_size: int,
    size: int,
    rank: int,
    world_size: int,
) -> Iterator[Request]:
    """The validation images once, by id, the centre window of `size`; a rank may get none."""
    ids = np.arange(len(dataset.val))
    for at in range(0, len(ids), batch_size):
        share = np.array_split(ids[at : at + batch_size], world_size)[rank]
        n = len(share)
        if n:
            offset = np.broadcast_to(_mean_color(dataset, format), (n, 3))
            yield Request(
                ids=share,
                corner=np.full((n, 2), (SIDE - size) // 2, np.int32),
                flip=np.zeros(n, np.int32),
                offset=_in_order(offset, format),
                std=np.full((n, 1), format.std, np.float32),
            )


def mean_plane(dataset: Dataset, format: InputFormat) -> np.ndarray:
    """The mean image in the network's colour order, (256, 256, 3) float32."""
    return _in_order(dataset.mean_image, format)


def _mean_color(dataset: Dataset, format: InputFormat) -> np.ndarray:
    if format.mean == "channel":
        return dataset.mean_image.mean((0, 1), dtype=np.float64)
    return np.zeros(3)


def _in_order(rgb: np.ndarray, format: InputFormat) -> np.ndarray:
    colors = rgb[..., ::-1] if format.color == "BGR" else rgb
    return np.ascontiguousarray(colors, np.float32)
