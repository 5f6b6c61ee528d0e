"""fastalex's training step with one op in turn handed to stock PyTorch, and with all of them.

For bench_step.py, on a GPU. What an op is worth is what the step loses without it. Every op asks
one function, `route`, whether a call may go to a kernel; here it answers "aten" for the op in
question.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from unittest import mock

import torch.nn.functional as F
from _settings import Setting, Terms
from _step import Ours, Provider
from torch import Tensor

from fastalex.kernels import use

MODULES = {
    "conv2d_relu": "conv2d_relu",
    "local_response_norm_max_pool2d": "local_response_norm_max_pool2d",
    "max_pool2d": "max_pool2d",
    "keyed_dropout": "keyed_dropout",
    "momentum_sgd_": "sgd",
}
"""The ops of a training step, and the file of `fastalex.kernels` that each lies in."""


@contextlib.contextmanager
def without(op: str) -> Iterator[None]:
    """Within it `op` computes with ATen; "all": every op."""
    if op == "all":
        with use("aten"):
            yield
        return
    with contextlib.ExitStack() as patches:
        module = sys.modules[f"fastalex.kernels.{MODULES[op]}"]
        patches.enter_context(mock.patch.object(module, "route", _aten))
        if op == "local_response_norm_max_pool2d":  # "aten" is there the two ops, each by its route
            norm = sys.modules["fastalex.kernels.local_response_norm"]
            patches.enter_context(mock.patch.object(norm, "route", _aten))
            patches.enter_context(mock.patch.object(module, "max_pool2d", F.max_pool2d))
        yield


def _aten(op: str, input: Tensor, covered: bool) -> str:
    return "aten"


class Without(Ours):
    """Traced, captured and run without the op."""

    def __init__(self, setting: Setting, terms: Terms, *, op: str) -> None:
        self._op = op
        with without(op):
            super().__init__(setting, terms)

    def step(self) -> Tensor:
        with without(self._op):
            return super().step()


def providers() -> dict[str, Provider]:
    found = {"fastalex": Provider("TrainStep", Ours, ours=True, half=True)}
    for op in (*MODULES, "all"):
        build = functools.partial(Without, op=op)
        says = "all ops by ATen" if op == "all" else f"{op} by ATen"
        found[f"without {op}"] = Provider(says, build, ours=False, half=True, compiled=True)
    return found
