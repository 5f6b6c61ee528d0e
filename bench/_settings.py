"""What is measured: a network at a batch size, its inputs, and the training config behind it.

Two networks, never mixed: the paper's and torchvision's; on a CPU also the demo's, which is the
paper's at a quarter of the width with ten classes. Images are synthetic, on the device, of the
spread that the network expects.
"""

from dataclasses import dataclass, replace

import torch
from _machine import DEVICE, GPU
from torch import Tensor

from fastalex import AlexNet, kernels
from fastalex.data.batch import Changes
from fastalex.train.build import build_model, input_format
from fastalex.train.config import TrainConfig
from fastalex.train.recipes import recipe

PIXEL_MEAN, PIXEL_SPREAD = 118, 58
"""Of a photograph's pixels, 0..255."""

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

    def pixels(self) -> Tensor:
        """(batch, S, S, 3) uint8 on the device; the same in every process."""
        size = input_format(self.config).size
        generator = torch.Generator(DEVICE).manual_seed(0)
        x = torch.randn((self.batch, size, size, 3), generator=generator, device=DEVICE)
        return (PIXEL_MEAN + PIXEL_SPREAD * x).round_().clamp_(0, 255).to(torch.uint8)

    def changes(self) -> Changes:
        """What is left to be done to the pixels."""
        return Changes(
            mean=torch.full((3,), float(PIXEL_MEAN), device=DEVICE),
            lighting=torch.zeros(self.batch, 3, device=DEVICE),
            corner=None,
            flip=torch.zeros(self.batch, dtype=torch.int32, device=DEVICE),
            std=input_format(self.config).std,
        )

    def images(self) -> Tensor:
        """(batch, 3, S, S) float32 on the device, channels_last: what becomes of the pixels."""
        with kernels.use("aten"):
            return self.changes().of(self.pixels())

    def labels(self) -> Tensor:
        return torch.arange(self.batch, device=DEVICE) % self.classes


@dataclass(frozen=True)
class Terms:
    dropout: float
    lr: float
    weight_decay: float


GATE = Terms(dropout=0.0, lr=1024.0, weight_decay=0.0)
"""A large rate, a power of two: the change of a weight is its gradient, to float32's last bits."""
TIMED = Terms(dropout=0.5, lr=1e-4, weight_decay=5e-4)
"""A small rate: hundreds of steps on one batch stay finite."""
