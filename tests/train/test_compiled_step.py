"""The whole training step through torch.compile, as on a GPU: no graph break, the same numbers.

On a CPU the ops go to ATen before they reach their autograd.Functions; here they are made to go
through, as for a tensor on a GPU, and torch's branch of each triton_op computes.
"""

import importlib
import pkgutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from fastalex import AlexNet, kernels
from fastalex.kernels._launch import DTYPES
from fastalex.model import fused
from fastalex.train.recipes import recipe
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture
def like_on_a_gpu(monkeypatch):
    """Which ops were asked for a route through their Function; all are let through."""
    asked = set()

    def route(op, input, covered):
        asked.add(op)
        return "auto" if covered and input.dtype in DTYPES else "aten"

    for found in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"fastalex.kernels.{found.name}")
        if hasattr(module, "route"):
            monkeypatch.setattr(module, "route", route)
    monkeypatch.setattr(fused, "may_fuse", lambda x: True)
    torch.compiler.reset()
    counters.clear()
    return asked


def losses_and_weights(compiled, variant, precision="fp32"):
    """Of three steps."""
    torch.manual_seed(0)
    config = replace(recipe("demo", CPU), compile=False, variant=variant, precision=precision)
    step = TrainStep(AlexNet(4, variant=variant, width=0.03), config, CPU)
    if compiled:
        network = step.network
        network._run = torch.compile(network._forward, fullgraph=True, backend="aot_eager")
        step._update = torch.compile(step.optimizer.step, fullgraph=True, backend="aot_eager")
    images, labels = torch.randn(4, 3, 99, 99), torch.arange(4)
    losses = [step(images, labels, Rates(0.01, 0.02, 0.01, 0.02), i)[0] for i in range(3)]
    return torch.stack(losses), [p.detach() for p in step.model.parameters()]


@pytest.mark.parametrize("variant", ["paper", "original", "torchvision", "batchnorm"])
def test_no_graph_break_and_the_same_numbers(variant, like_on_a_gpu):
    eager = losses_and_weights(False, variant)
    compiled = losses_and_weights(True, variant)
    assert not counters["graph_break"]
    assert {"conv2d_relu", "relu_dropout", "max_pool2d"} & like_on_a_gpu
    assert "momentum_sgd_" in like_on_a_gpu
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_in_bfloat16(like_on_a_gpu):
    """Autocast casts the operands of the convolutions; the norms keep what they are given."""
    eager = losses_and_weights(False, "paper", "bf16")
    compiled = losses_and_weights(True, "paper", "bf16")
    assert not counters["graph_break"]
    torch.testing.assert_close(compiled, eager, rtol=1e-2, atol=1e-3)


def test_the_functions_compute_what_plain_modules_do(like_on_a_gpu, monkeypatch):
    """Dropout aside, whose masks are drawn in another way."""
    monkeypatch.setattr(fused, "_relu_dropout", lambda dropout, x: dropout(x.relu()))
    through = losses_and_weights(False, "paper")
    monkeypatch.undo()
    plain = losses_and_weights(False, "paper")
    torch.testing.assert_close(through, plain, rtol=1e-4, atol=1e-5)
