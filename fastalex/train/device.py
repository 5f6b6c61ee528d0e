"""Which device a run uses, and what precision means on it."""

import contextlib
from contextlib import AbstractContextManager

import torch

from fastalex.errors import UsageError
from fastalex.train.config import Precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, gpus: int = 1) -> torch.device:
    """The device for --device `name` (auto, cuda or cpu) and --gpus `gpus`.

    Raises:
        UsageError: the machine has not got it.
    """
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus > 1 and (name == "cpu" or have < gpus):
        raise UsageError(
            f"--gpus {gpus}: {'--device cpu uses none' if name == 'cpu' else f'found {have} GPUs'}"
            "; leave --gpus out to train on one GPU or on the CPU"
        )
    if gpus > 1:
        raise UsageError(f"--gpus {gpus}: this version trains on one GPU; leave --gpus out")
    if name == "cuda" and not have:
        raise UsageError("--device cuda: torch finds no GPU; leave --device out to use the CPU")
    return torch.device("cuda" if have and name != "cpu" else "cpu")


def arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Autocast for `precision` on `device`; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])
