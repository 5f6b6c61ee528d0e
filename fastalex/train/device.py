"""Which device a run uses, and what precision means on it."""

import contextlib
import os
from contextlib import AbstractContextManager

import torch

from fastalex.errors import UsageError
from fastalex.train.config import Precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What convolutions and linear layers compute in."""


def pick_device(name: str, gpus: int = 1) -> torch.device:
    """The device for --device `name` (auto, cuda or cpu) and --gpus `gpus`; for a rank, as the
    environment has it (LOCAL_RANK of LOCAL_WORLD_SIZE), its own.

    Raises:
        UsageError: the machine has not got it.
    """
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and not have:
        raise UsageError("--device cuda: torch finds no GPU; leave --device out to use the CPU")
    if gpus > 1 and name != "cpu" and have < int(os.environ.get("LOCAL_WORLD_SIZE", gpus)):
        raise UsageError(
            f"--gpus {gpus}: torch finds {have} here; leave --gpus out to train on one GPU or on "
            f"the CPU, or add --device cpu to try it out with {gpus} processes of the CPU"
        )
    local = int(os.environ.get("LOCAL_RANK", 0)) if gpus > 1 else 0
    return torch.device("cuda", local) if have and name != "cpu" else torch.device("cpu")


def arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Autocast for `precision` on `device`; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
