"""The rows of a profile: which ops they are, on what, and what each must compute and move."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastalex import AlexNet, FusedSequential, kernels
from fastalex.model import LocalResponseNorm, fused
from fastalex.model.dropout import key_dropouts
from fastalex.profile.units import Unit, module_names, optimizer_cost, units

FULLY_CONNECTED = ["avgpool+flatten", "fc6+relu+dropout", "fc7+relu+dropout", "fc8", "loss"]
ROWS = {
    "paper": ["conv1+relu", "norm1+pool1", "conv2+relu", "norm2+pool2", "conv3+relu",
              "conv4+relu", "conv5+relu", "pool5", *FULLY_CONNECTED],
    "original": ["conv1", "norm1+pool1+relu", "conv2+relu", "norm2", "spatial_norm2", "pool2",
                 "conv3+relu", "conv4+relu", "conv5", "pool5+relu", *FULLY_CONNECTED],
    "caffenet": ["conv1+relu", "pool1", "norm1", "conv2+relu", "pool2", "norm2", "conv3+relu",
                 "conv4+relu", "conv5+relu", "pool5", *FULLY_CONNECTED],
    "torchvision": ["conv1+relu", "pool1", "conv2+relu", "pool2", "conv3+relu", "conv4+relu",
                    "conv5+relu", "pool5", "avgpool+flatten", "dropout5", "fc6+relu+dropout",
                    "fc7+relu", "fc8", "loss"],
    "batchnorm": ["conv1", "norm1+relu", "pool1", "conv2", "norm2+relu", "pool2", "conv3",
                  "norm3+relu", "conv4", "norm4+relu", "conv5", "norm5+relu", "pool5",
                  *FULLY_CONNECTED],
}  # fmt: skip


def units_of(model: AlexNet, batch: int = 2, itemsize: int = 4) -> list[Unit]:
    torch.manual_seed(1)
    side = model.variant.input.size
    return list(units(model, torch.randn(batch, 3, side, side), torch.arange(batch), 0.1, itemsize))


@pytest.fixture(scope="module")
def paper() -> dict[str, Unit]:
    """The paper's network, two images, in half precision; what its weights are is no matter."""
    with torch.device("meta"):
        model = AlexNet()
    return {unit.name: unit for unit in units_of(model.to_empty(device="cpu"), itemsize=2)}


@pytest.mark.parametrize("variant", ROWS)
def test_rows_are_the_runs_of_the_network(variant):
    model = AlexNet(variant=variant, width=0.05)
    assert [unit.name for unit in units_of(model)] == ROWS[variant]
    every = key_dropouts(model, torch.tensor([0, 0]))
    assert [unit.name for unit in units_of(every)] == ROWS[variant]


# By hand: flops of the two passes, bytes of the two passes.
BY_HAND = {
    "conv1+relu": (
        2 * (2 * 96 * 55 * 55 * 363), 2 * (2 * 96 * 55 * 55 * 363),
        2 * (2 * 3 * 224 * 224 + 96 * 364 + 2 * 290_400),
        2 * (2 * 290_400 + 2 * 3 * 224 * 224 + 96 * 364),
    ),
    "conv2+relu": (895_795_200, 1_791_590_400, 1_641_344, 2_536_192),
    "norm1+pool1": (0, 0, 2 * (580_800 + 139_968), 2 * (139_968 + 2 * 580_800)),
    "pool5": (0, 0, 2 * 2 * 256 * (169 + 36), 2 * 2 * 256 * (169 + 36)),
    "fc6+relu+dropout": (150_994_944, 301_989_888, 75_558_912, 151_101_440),
    "loss": (0, 0, 4000, 8000),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_flops_and_bytes_by_hand(paper, name):
    costs = paper[name].costs
    forward, backward = costs["forward"], costs["backward"]
    assert (forward.flops, backward.flops, forward.moved, backward.moved) == BY_HAND[name]


def test_all_flops_are_the_papers(paper):
    """724,406,816 multiplications and additions an image, as everybody counts them."""
    assert sum(unit.costs["forward"].flops for unit in paper.values()) == 2 * 2 * 724_406_816


def test_the_optimizer_moves_weight_velocity_and_gradient():
    assert optimizer_cost(1000).moved == 1000 * (4 + 4 + 4 + 4 + 4)


def test_units_joined_are_the_network():
    """Forward and backward: each is on the input that it has in the network, none is left out."""
    model = AlexNet(width=0.05, num_classes=10, init="he", dropout=0.0)
    torch.manual_seed(1)
    images, labels = torch.randn(2, 3, 224, 224), torch.arange(2)
    found = list(units(model, images, labels, 0.1, 4))
    loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(found[-1].run(found[-1].input), loss)
    got, dy = dict[nn.Parameter, torch.Tensor](), torch.tensor(1.0)
    for unit in reversed(found):
        wrt = [x for x in (unit.input, *unit.parameters) if x.requires_grad]
        gradients = torch.autograd.grad(unit.run(unit.input), wrt, dy)
        got |= zip(wrt, gradients, strict=True)
        dy = got.get(unit.input)
    assert dy is None  # conv1's images have no gradient
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(got[parameter], gradient)


def test_names_count_by_the_layer_before():
    names = module_names(AlexNet(variant="original", width=0.05))
    assert list(names.values())[:12] == [
        "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8",
        "norm1", "pool1", "relu1", "relu2",
    ]  # fmt: skip


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, bool]]:
    """Each call of an op that a ReLU's backward may be in, and whether it is asked to do it."""
    calls = []
    for name, key in (("conv2d_relu", "mask_gradient"), ("local_response_norm_max_pool2d", "relu")):
        op = getattr(kernels, name)

        def spy(*args, _op=op, _name=name, _key=key, **kwargs):
            calls.append((_name, kwargs[_key]))
            return _op(*args, **kwargs)

        monkeypatch.setattr(kernels, name, spy)
    return calls


@pytest.mark.parametrize("folds", [False, True])
def test_runs_are_what_forward_does(folds, asked, monkeypatch):
    """Where a ReLU's backward is folded into the op that follows, as on a GPU, and elsewhere."""
    monkeypatch.setattr(fused, "may_fuse", lambda x: folds)
    network = FusedSequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), LocalResponseNorm(3), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Dropout(0.0),
    )  # fmt: skip
    x = torch.randn(2, 3, 11, 11)
    expected = network(x)
    in_forward = asked.copy()
    dropout = [range(8, 10)] if folds else [range(8, 9), range(9, 10)]
    y, seen, in_runs = x, [], []
    for numbers, op, given in network.runs(x):
        assert torch.equal(given, y)
        asked.clear()
        y = op(y)
        seen.append(numbers)
        in_runs += asked
    assert seen == [range(0, 2), range(2, 4), range(4, 6), range(6, 7), range(7, 8), *dropout]
    assert in_runs == in_forward
    torch.testing.assert_close(y, expected)
    gradients = [
        torch.autograd.grad(out.sum(), list(network.parameters())) for out in (y, expected)
    ]
    torch.testing.assert_close(*gradients)
