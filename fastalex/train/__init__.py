"""Training and evaluation: recipes, schedule, optimizer, checkpoints, the loop.

`fastalex.commands` calls `train` and `evaluate_run`; a script may, too.
"""

from fastalex.train.config import TrainConfig
from fastalex.train.evaluate import Metrics, evaluate, evaluate_run
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
