"""Training and evaluation: recipes, schedule, optimizer, checkpoints, the loop.

`fastalex.commands` calls `train` and `evaluate_run`; a script may, too. They are loaded when first
asked for: they need DALI, which a step on images from elsewhere (`fastalex.train.step`) does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastalex.train.config import TrainConfig
    from fastalex.train.evaluation import Metrics, evaluate, evaluate_run
    from fastalex.train.optimizer import MomentumSGD
    from fastalex.train.recipes import recipe
    from fastalex.train.rundir import read_config
    from fastalex.train.start import train

__all__ = [
    "Metrics",
    "MomentumSGD",
    "TrainConfig",
    "evaluate",
    "evaluate_run",
    "read_config",
    "recipe",
    "train",
]

_HOMES = {
    "Metrics": "evaluation", "MomentumSGD": "optimizer", "TrainConfig": "config",
    "evaluate": "evaluation", "evaluate_run": "evaluation", "read_config": "rundir",
    "recipe": "recipes", "train": "start",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"fastalex.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fastalex.train' has no attribute {name!r}")
