"""What the graph of `fastalex.data.pipeline` depends on, worked out once."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from fastalex.data._requests import mean_plane
from fastalex.data._workers import num_cores
from fastalex.data.shards import Dataset
from fastalex.inputs import InputFormat


@dataclass(frozen=True, slots=True)
class Plan:
    """What DALI's graph depends on."""

    mean: np.ndarray | None
    """(256, 256, 3) float32, or None for a mean colour."""
    mean_at_window: bool
    size: int
    batch_size: int
    color: str
    device: torch.device
    threads: int
    pixels: bool = False
    """End with the decoded window."""

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        format: InputFormat,
        size: int,
        batch_size: int,
        world_size: int,
        device: torch.device | str,
        threads: int | None,
    ) -> "Plan":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # torchrun sets it
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return cls(
            mean=None if format.mean == "channel" else mean_plane(dataset, format),
            mean_at_window=format.mean == "image",
            size=size,
            batch_size=-(-batch_size // world_size),
            color=format.color,
            device=device,
            threads=threads or max(1, num_cores() // here),
        )
