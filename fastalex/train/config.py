"""Every setting of a training run, in one dataclass: its fields are the flags of `fastalex-train`.

`recipes.py` gives the defaults; what is in force is written to the run's `config.json`, from which
`--resume` reads it back.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastalex.errors import UsageError

ParallelName = Literal["auto", "towers", "data", "hybrid"]
Precision = Literal["bf16", "fp16", "fp32"]
ScheduleName = Literal["constant", "plateau", "step", "cosine", "original"]
RecipeName = Literal["demo", "paper", "original", "caffe", "modern"]
VariantName = Literal[
    "paper", "original", "caffe", "caffenet", "torchvision", "single", "batchnorm"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of a run, written to its config.json."""

    recipe: RecipeName = "paper"
    """Sets the defaults of all that follows. demo: the built-in digits; paper: as printed;
    original: as run in 2012; caffe: bvlc_alexnet's solver; modern: batch norm, large batch."""
    data: Path | None = None
    """Prepared dataset (fastalex-prepare) or folder of images; left out: the built-in digits."""
    variant: VariantName = "paper"
    """Network."""
    width: float = 1.0
    """Share of the network's channels and units to keep."""
    init: str | None = None
    """Initialisation: a variant's name, or he; left out: the variant's own."""
    dropout: float = 0.5
    """Probability of dropping a unit of fc6 and fc7."""
    input_std: float | None = None
    """Divides the mean-free pixels (0..255); left out: the variant's own."""
    gpus: int = 1
    """GPUs to train on, a process each; 1 also stands for the CPU where there is no GPU, and more
    with --device cpu for so many processes of the CPU, to try it out."""
    parallel: ParallelName | None = None
    """How GPUs share a step. towers: two GPUs, a tower each, as in 2012; data: each the whole
    network on its part of the batch; hybrid: that for the convolutions, a part of the fully
    connected layers each; auto: times them. Left out: towers where they fit, else data."""
    micro_batches: int | Literal["auto"] | None = None
    """Parts of a batch that follow each other through towers and hybrid, so that one's exchange
    runs while another computes; auto: times 1, 2 and 4. Left out: 2, and 1 with batch norm."""
    timeout: float = 300.0
    """Seconds without progress after which a rank counts as hanging (ten times that for the first
    steps, which compile)."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPU when there is one."""
    batch_size: int = 128
    """Images per step over all GPUs."""
    epochs: int = 90
    """Passes over the training set."""
    steps: int | None = None
    """Stop after so many steps in all; left out: after --epochs."""
    lr: float = 0.01
    """Learning rate at the start (cosine: at its peak)."""
    schedule: ScheduleName = "plateau"
    """How the rate falls: constant; plateau, / 10 when validation error stops improving; step, / 10
    every --step-epochs; cosine; original, the phases of 2012 (--lr scales them)."""
    patience: int = 3
    """plateau: passes without a better validation error before the rate drops."""
    lr_floor: float = 1e-5
    """plateau: the rate never drops below."""
    step_epochs: float = 20.0
    """step: passes between drops."""
    warmup_epochs: float = 0.0
    """cosine: passes of linear warm-up."""
    momentum: float = 0.9
    """Share of the velocity kept at each step."""
    weight_decay: float = 5e-4
    """L2 decay of the weights."""
    bias_lr_scale: float = 1.0
    """Rate of the biases, as a multiple of the weights'."""
    bias_decay: bool = True
    """Decay the biases (and batch norm's parameters) like the weights."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    lighting: float = 0.1
    """Standard deviation of the PCA colour noise; 0: none."""
    lighting_shrink: bool = False
    """Divide image and noise by 1 + lighting in training, as the 2012 code does."""
    flip: bool = True
    """Mirror half of the training images."""
    seed: int = 0
    """Of the weights, the order, the crops, flips and noise, and dropout."""
    precision: Precision = "bf16"
    """Arithmetic of the network; weights and optimizer stay in fp32."""
    compile: bool = True
    """torch.compile the training step."""
    init_from: Path | None = None
    """Start from these weights: a run directory or a .safetensors file of the same variant. A last
    layer for another number of classes is left as initialised."""
    skip_bad: int = 0
    """Undecodable training images to tolerate, on each GPU, before the run stops."""
    log_every: int = 10
    """Steps between fetches of the losses from the device; every step is logged."""

    def check(self) -> None:
        """Raise UsageError for the first value that no run can have."""
        at_least = {
            "batch_size": 1, "epochs": 1, "log_every": 1, "gpus": 1, "patience": 1, "seed": 0,
            "skip_bad": 0, "lighting": 0, "lr_floor": 0, "weight_decay": 0, "warmup_epochs": 0,
            "bias_lr_scale": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            self._refuse(name, lambda x, least=least: x >= least, f"at least {least}")
        for name in ("width", "step_epochs", "input_std", "steps", "lr", "timeout"):
            self._refuse(name, lambda x: x > 0, "greater than 0")
        for name in ("dropout", "momentum", "label_smoothing"):
            self._refuse(name, lambda x: 0 <= x < 1, "in [0, 1)")
        self._refuse("seed", lambda x: x < 2**64, "below 2^64")
        self._refuse("micro_batches", lambda x: x == "auto" or x >= 1, "auto, or at least 1")
        for name, names in (("schedule", ScheduleName), ("parallel", ParallelName)):
            known = get_args(names)
            self._refuse(name, lambda x, known=known: x in known, f"one of {', '.join(known)}")

    def _refuse(self, name: str, good: Callable[[Any], bool], rule: str) -> None:
        value = getattr(self, name)
        infinite = isinstance(value, float) and not math.isfinite(value)
        if value is not None and (infinite or not good(value)):
            raise UsageError(f"{flag(name)} must be {rule}, got {value}")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them: paths as text."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def flag(name: str) -> str:
    """The command-line name of a field."""
    return "--" + name.replace("_", "-")
