"""What is measured: a network at a batch size, its inputs, and the training config behind it.

Two networks, never mixed: the paper's and torchvision's; on a CPU also the demo's, which is the
paper's at a quarter of the width with ten classes. Images are synthetic, on the device, of the
spread that the network expects.
"""

from dataclasses import dataclass, replace

import torch
from _machine import DEVICE, GPU
from torch import Tensor

from fastalex import AlexNet
from fastalex.train.build import build_model, input_format
from fastalex.train.config import TrainConfig
from fastalex.train.recipes import recipe

PIXEL_SPREAD = 58.0
"""Standard deviation of a photograph's pixels, 0..255."""

# network, batch, in the order in which a budget is spent: the headline first
STEPS = (
    [("paper", 1024), ("paper", 128), ("torchvision", 1024), ("torchvision", 128)]
    + [(network, batch) for batch in (2048, 512) for network in ("paper", "torchvision")]
    if GPU
    else [("demo", 32), ("paper", 16), ("torchvision", 16)]
)
INFERENCES = (
    [(network, batch) for batch in (1, 1024, 128, 16) for network in ("paper", "torchvision")]
    if GPU
    else [("demo", 32), ("demo", 1)]
    + [(network, batch) for batch in (16, 1) for network in ("paper", "torchvision")]
)


@dataclass(frozen=True)
class Setting:
    """One network at one batch size."""

    network: str
    """paper, torchvision or demo."""
    batch: int

    def __str__(self) -> str:
        return f"{self.network}-{self.batch}"

    @property
    def config(self) -> TrainConfig:
        """As `fastalex-train` would run it on this device, with this batch."""
        base = recipe("demo" if self.network == "demo" else "paper", DEVICE.type)
        variant = "torchvision" if self.network == "torchvision" else "paper"
        return replace(base, variant=variant, batch_size=self.batch)

    @property
    def classes(self) -> int:
        return 10 if self.network == "demo" else 1000

    def model(self, dropout: float) -> AlexNet:
        """Ours, from the config's seed, on the CPU."""
        return build_model(replace(self.config, dropout=dropout), self.classes)

    def images(self) -> Tensor:
        """(batch, 3, S, S) float32 on the device, channels_last; the same in every process."""
        format = input_format(self.config)
        generator = torch.Generator(DEVICE).manual_seed(0)
        shape = (self.batch, 3, format.size, format.size)
        x = torch.randn(shape, generator=generator, device=DEVICE) * (PIXEL_SPREAD / format.std)
        return x.contiguous(memory_format=torch.channels_last)

    def labels(self) -> Tensor:
        return torch.arange(self.batch, device=DEVICE) % self.classes
