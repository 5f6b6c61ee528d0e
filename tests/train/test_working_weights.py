"""bfloat16 working weights: the numbers of autocast, float32 masters in whatever is saved."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fastalex.errors import UsageError
from fastalex.train.build import build_model
from fastalex.train.optimizer import MomentumSGD
from fastalex.train.recipes import recipe
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep, parameter_groups
from fastalex.train.working_weights import halve

CPU = torch.device("cpu")
RATES = Rates(0.01, 0.02, 0.01, 0.02)
SMALL = replace(
    recipe("demo", "cpu"), width=0.03, precision="bf16", compile=False, dropout=0.0
)  # fmt: skip


def batch(number):
    images = torch.randn(4, 3, 99, 99, generator=torch.Generator().manual_seed(number))
    return images.to(memory_format=torch.channels_last), torch.arange(4)


def train(step, numbers):
    return [step(*batch(i), RATES, i)[0].item() for i in numbers]


@pytest.mark.parametrize("variant", ["paper", "batchnorm"])
def test_the_bits_of_autocast(variant):
    config = replace(SMALL, variant=variant)
    step = TrainStep(build_model(config, 4), config, CPU)
    losses = train(step, range(4))

    model = build_model(config, 4)
    optimizer = MomentumSGD(parameter_groups(model, config, CPU))
    for group in optimizer.param_groups:
        group["lr"].fill_(getattr(RATES, group["name"]))
    expected = []
    for i in range(4):
        images, labels = batch(i)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())

    assert losses == expected
    assert len(set(losses)) == 4
    weights = step.weights()
    for name, parameter in model.state_dict().items():
        assert torch.equal(weights[name], parameter), name


def test_what_is_saved_is_the_masters_and_goes_on_from_them():
    whole, first, second = (TrainStep(build_model(SMALL, 4), SMALL, CPU) for _ in range(3))
    expected = train(whole, range(5))
    train(first, range(2))
    state = first.state_dict()
    for saved in (state["model"], *state["optimizer"]["state"].values()):
        for value in saved.values():
            assert value.dtype == torch.float32
            assert not torch.equal(value, value.bfloat16().float()) or not value.any()
    train(second, [7])
    masters = dict(second.network.masters)
    second.load_state_dict(state, Path())
    assert train(second, range(2, 5)) == expected[2:]
    assert all(second.network.masters[p] is master for p, master in masters.items())


def test_the_optimizers_own_state_keeps_float32():
    """Where a script saves it: torch would round velocities to the dtype of the parameters."""
    master = torch.randn(50)
    parameter = torch.nn.Parameter(master.bfloat16())

    def optimizer():
        return MomentumSGD([parameter], lr=0.1, masters={parameter: master})

    first, second = optimizer(), optimizer()
    parameter.grad = torch.randn(50).bfloat16()
    first.step()
    assert torch.equal(parameter, master.bfloat16())
    second.load_state_dict(first.state_dict())
    assert second.velocity(parameter).dtype == torch.float32
    assert torch.equal(second.velocity(parameter), first.velocity(parameter))
    assert second.velocity(parameter) is not first.velocity(parameter)


def test_fp32_and_fp16_have_none():
    for precision in ("fp32", "fp16"):
        config = replace(SMALL, precision=precision)
        step = TrainStep(build_model(config, 4), config, CPU)
        assert not step.network.masters
        assert all(p.dtype == torch.float32 for p in step.model.parameters())


def test_masters_that_do_not_fit_are_refused():
    w = torch.nn.Parameter(torch.randn(5).bfloat16())
    for key, master in ((w, w.detach()), (w, torch.zeros(4)), ("w", torch.zeros(5))):
        with pytest.raises(UsageError, match="a master in `masters` must be float32"):
            MomentumSGD([w], masters={key: master})


def test_a_state_is_loaded_into_the_tensors_that_are_there():
    """A recorded step knows no others."""
    step = TrainStep(build_model(SMALL, 4), SMALL, CPU)
    train(step, range(2))
    state = step.state_dict()
    state = {key: copy.deepcopy(value) for key, value in state.items()}
    parameters = list(step.model.parameters())
    held = [step.optimizer.velocity(p).data_ptr() for p in parameters]
    held += [p.data_ptr() for p in parameters]
    step.load_state_dict(state, Path())
    now = [step.optimizer.velocity(p).data_ptr() for p in parameters]
    assert now + [p.data_ptr() for p in parameters] == held


def test_halving_keeps_masters_and_batch_norm():
    model = build_model(replace(SMALL, variant="batchnorm"), 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masters = halve(model)
    for name, parameter in model.named_parameters():
        master = masters.get(parameter, parameter)
        assert torch.equal(master, before[name])
        assert (parameter in masters) == (parameter.dtype == torch.bfloat16)
        assert parameter.stride() == before[name].stride()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(m.weight not in masters for m in norms)
    assert len(masters) == len(before) - 2 * len(norms)
