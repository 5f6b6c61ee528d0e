"""A batch of images, as `fastalex.data.pipeline` delivers it: ready, or as pixels and what to do.

On a GPU `fastalex.train` makes images of pixels with one kernel, straight into the memory that its
step reads. The formula is `fastalex.kernels.images`', the draws are `fastalex.data.sampler`'s.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastalex import kernels
from fastalex.data._feed import Pending
from fastalex.data._plan import Plan
from fastalex.data.shards import Split


@dataclass(frozen=True, slots=True)
class Changes:
    """Still to be done to the pixels of a batch of n windows; on their device."""

    mean: Tensor
    """(256, 256, 3) mean image, or (3,) zeros where `lighting` has the mean colour."""
    lighting: Tensor
    """(n, 3) float32: what is added, less the mean colour."""
    corner: Tensor | None
    """(n, 2) int32: where the windows lie in the mean image; None: at its centre."""
    flip: Tensor
    """(n,) int32."""
    std: float

    def tensors(self) -> list[Tensor]:
        given = (self.mean, self.lighting, self.corner, self.flip)
        return [tensor for tensor in given if tensor is not None]

    def of(
        self,
        pixels: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        space_to_depth: int = 1,
        padding: tuple[int, int] = (0, 0),
        out: Tensor | None = None,
    ) -> Tensor:
        """(n, size, size, 3) uint8 to `kernels.images`' output; arguments and errors are its."""
        return kernels.images(
            pixels, self.mean, self.lighting, corner=self.corner, flip=self.flip, std=self.std,
            dtype=dtype, space_to_depth=space_to_depth, padding=padding, out=out,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """Images as the network wants them, or pixels and `changes`, in memory of their own."""

    images: Tensor
    """(B, 3, size, size) float32, channels_last; where there are `changes`, (B, size, size, 3)
    uint8 in the network's order of colours."""
    labels: Tensor
    """(B,) int64, on the same device."""
    ids: np.ndarray
    """(B,) int64: numbers of the images in their split."""
    changes: Changes | None = None


class Delivery:
    """Makes batches of what DALI returns."""

    def __init__(self, plan: Plan, split: Split) -> None:
        self._plan, self._labels = plan, split.labels
        self._mean = torch.zeros(3) if plan.mean is None else torch.from_numpy(plan.mean)
        self._mean = self._mean.to(plan.device)

    def batch(self, images: Tensor, batch: Pending) -> Batch:
        labels = self._there(self._labels[batch.ids])
        if not self._plan.pixels:
            return Batch(images.permute(0, 3, 1, 2), labels, batch.ids)
        request = batch.request
        changes = Changes(
            mean=self._mean,
            lighting=self._there(-request.offset),
            corner=self._there(request.corner) if self._plan.mean_at_window else None,
            flip=self._there(request.flip),
            std=float(request.std[0, 0]),
        )
        return Batch(images, labels, batch.ids, changes)

    def _there(self, values: np.ndarray) -> Tensor:
        """On the device; a copy from pinned memory does not wait for it."""
        tensor = torch.from_numpy(values)
        if self._plan.device.type == "cuda":
            return tensor.pin_memory().to(self._plan.device, non_blocking=True)
        return tensor
