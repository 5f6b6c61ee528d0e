"""MomentumSGD against the paper's arithmetic, by hand."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fastalex.errors import UsageError
from fastalex.kernels import use
from fastalex.train import MomentumSGD


def _scalar(value: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))


def test_trap_6_two_steps_across_a_rate_drop():
    """V1 = -.1(3 + .5*2) = -.4; V2 = .9*V1 - .01(3 + .5*1.6) = -.36 - .038 = -.398."""
    w = _scalar(2.0)
    optimizer = MomentumSGD([w], lr=0.1, momentum=0.9, weight_decay=0.5)
    w.grad = torch.tensor([3.0], dtype=torch.float64)
    optimizer.step()
    assert w.item() == pytest.approx(1.6, abs=1e-12)
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    assert w.item() == pytest.approx(1.6 - 0.398, abs=1e-12)


def test_torch_sgd_differs_only_after_the_drop():
    ours, torchs = _scalar(2.0), _scalar(2.0)
    a = MomentumSGD([ours], lr=0.1, momentum=0.9, weight_decay=0.5)
    b = torch.optim.SGD([torchs], lr=0.1, momentum=0.9, weight_decay=0.5)
    for step in range(4):
        if step == 3:
            a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = 0.01
        ours.grad, torchs.grad = torch.ones_like(ours), torch.ones_like(torchs)
        a.step()
        b.step()
        same = ours.item() == pytest.approx(torchs.item(), abs=1e-12)
        assert same == (step < 3), f"step {step}"


def test_trap_7_zero_gradient_moves_only_what_decays():
    weight, bias = _scalar(1.0), _scalar(1.0)
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = MomentumSGD(groups, lr=0.1, weight_decay=5e-4)
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 5e-5, abs=1e-12)
    assert bias.item() == 1.0


def test_a_rate_of_zero_leaves_the_velocity_to_die_out():
    w = _scalar(0.0)
    optimizer = MomentumSGD([w], lr=1.0, momentum=0.5, weight_decay=0.0)
    w.grad = torch.ones_like(w)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = torch.zeros(())
    for _ in range(60):
        optimizer.step()
    assert w.item() == pytest.approx(-2.0, abs=1e-9)


def test_state_survives_a_round_trip():
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(5))
    optimizer = MomentumSGD([w], lr=0.1)
    w.grad = torch.randn(5)
    optimizer.step()
    twin = torch.nn.Parameter(w.detach().clone())
    other = MomentumSGD([twin], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin.grad = w.grad.clone()
    optimizer.step()
    other.step()
    assert torch.equal(w, twin)


@pytest.mark.parametrize("mode", ["aten", "auto", "triton"])
def test_every_mode_takes_the_same_steps(mode):
    """Weights of all layouts, in two groups, one of which has a rate on the device."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = [(4, 3, 5, 5), (7, 9), (300,)]
    weights = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    weights[0].data = weights[0].data.to(memory_format=torch.channels_last)
    expected = [w.detach().double() for w in weights]
    velocity = [torch.zeros_like(w) for w in expected]
    rate = torch.tensor(0.1, device=device)
    groups = [{"params": weights[:2], "lr": rate}, {"params": weights[2:], "weight_decay": 0.0}]
    optimizer = MomentumSGD(groups, lr=0.05, weight_decay=0.01)
    for step in range(3):
        rate.fill_(0.1 / (step + 1))
        for i, w in enumerate(weights):
            w.grad = torch.randn_like(w)
            lr, decay = (rate.item(), 0.01) if i < 2 else (0.05, 0.0)
            pull = w.grad.double() + decay * expected[i]
            velocity[i] = 0.9 * velocity[i] - lr * pull
            expected[i] = expected[i] + velocity[i]
        with use(mode):
            optimizer.step()
    for w, exact in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.detach(), exact.float())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_velocity_lies_as_its_weight_does(layout):
    """Else every step would be ATen's."""
    w = torch.nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=layout))
    w.grad = torch.ones_like(w)
    optimizer = MomentumSGD([w])
    optimizer.step()
    assert optimizer.state[w]["velocity"].stride() == w.stride()


def test_a_new_rate_is_no_new_compilation():
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(4))]
    rate = torch.tensor(0.0)
    optimizer = MomentumSGD([{"params": weights, "lr": rate}])
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    step = torch.compile(optimizer.step, fullgraph=True, backend=counter)
    for w in weights:
        w.grad = torch.ones_like(w)
    counts = []
    for lr in (0.1, 0.2, 0.3):
        rate.fill_(lr)
        before = weights[1].detach().clone()
        step()
        counts.append(counter.frame_count)
    assert counts[1:] == [counts[1]] * 2  # the first step makes the velocities
    assert not torch.equal(weights[1].detach(), before)


def test_closure_and_parameters_without_gradient():
    used, idle = _scalar(1.0), _scalar(1.0)
    optimizer = MomentumSGD([used, idle], lr=0.1, weight_decay=0.1)

    def closure():
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert used.item() < 1.0
    assert idle.item() == 1.0


@pytest.mark.parametrize(
    ("setting", "value"), [("lr", -1.0), ("momentum", 1.0), ("weight_decay", -0.1)]
)
def test_refuses(setting, value):
    with pytest.raises(UsageError, match=rf"`{setting}`.*{value}"):
        MomentumSGD([_scalar(1.0)], **{setting: value})
