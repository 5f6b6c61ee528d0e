"""Evaluation without gradients: fully connected layers in one product each, the same answer."""

import pytest
import torch
from torch import nn

from fastalex import AlexNet, FusedSequential
from fastalex.model import UnscaledDropout
from fastalex.model.dropout import KeyedDropout


@pytest.fixture
def products(monkeypatch):
    """The list that the scale of each product of several steps goes to."""
    scales, product = [], torch._addmm_activation

    def spy(*args, alpha=1):
        scales.append(alpha)
        return product(*args, alpha=alpha)

    monkeypatch.setattr(torch, "_addmm_activation", spy)
    return scales


def by_modules(model, x):
    """Each module by itself, as nn.Sequential runs them."""
    x = nn.Sequential(*model.features, model.avgpool, nn.Flatten())(x)
    return nn.Sequential(*model.classifier)(x)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("variant", "scales"), [("paper", [0.7, 0.7]), ("caffe", [1, 1]), ("torchvision", [1, 1])]
)
def test_the_same_answer(variant, scales, half, products):
    model = AlexNet(5, 0.3, variant=variant, width=0.05).eval()
    x = torch.randn(3, 3, 99, 99)
    with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.inference_mode():
        expected = by_modules(model, x)
        assert not products
        got = model(x)
    assert products == scales
    assert got.dtype == expected.dtype == (torch.bfloat16 if half else torch.float32)
    tolerance = 3e-2 if half else 1e-5
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    model.bfloat16()
    with torch.no_grad():
        assert model(x.bfloat16()).dtype == torch.bfloat16


def layers(dropout, bias=True):
    return [nn.Linear(8, 6, bias=bias), nn.ReLU(), dropout, nn.Linear(6, 2)]


def test_under_autocast_a_few_images_meet_the_weights_uncast(monkeypatch):
    """And are nearer to float32 than autocast is; all else is autocast's."""
    seen, product = [], torch._addmm_activation

    def spy(bias, x, weight, alpha):
        seen.append((len(x), weight.dtype))
        return product(bias, x, weight, alpha=alpha)

    monkeypatch.setattr(torch, "_addmm_activation", spy)
    linear = nn.Linear(512, 256)
    model = FusedSequential(linear, nn.ReLU()).eval()
    for rows in (16, 17):
        x = torch.randn(rows, 512).bfloat16()
        exact = linear(x.float()).relu()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            cast, got = linear(x).relu(), model(x)
        assert got.dtype == torch.bfloat16
        error, of_autocast = (got - exact).norm(), (cast - exact).norm()
        assert error < of_autocast if rows == 16 else torch.equal(got, cast)
    assert seen == [(16, torch.float32), (17, torch.bfloat16)]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model.bfloat16()(x[:1])
    assert seen[-1] == (1, torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"), torch.no_grad():
        FusedSequential(nn.Linear(512, 4), nn.ReLU())(x[:1])


@pytest.mark.parametrize("inverted", [True, False])
def test_keyed_dropout(inverted, products):
    dropout = KeyedDropout(0.25, torch.tensor([1, 2]), inverted=inverted)
    model, x = FusedSequential(*layers(dropout)).double().eval(), torch.randn(4, 8).double()
    with torch.no_grad():
        torch.testing.assert_close(model(x), nn.Sequential(*model)(x))
    assert products == [1.0 if inverted else 0.75]


def test_what_stays_apart(products):
    """Gradients, a dropout that drops, a hook, no bias, no rows: as they were."""
    model = FusedSequential(*layers(UnscaledDropout(0.5))).eval()
    x = torch.randn(4, 8)
    assert model(x).requires_grad
    with torch.no_grad():
        model.train()
        assert len({model(x).sum().item() for _ in range(8)}) > 1
        model.eval()
        assert model(torch.randn(2, 4, 8)).shape == (2, 4, 2)
        handle = model[1].register_forward_hook(lambda *_: None)
        model(x)
        handle.remove()
        FusedSequential(*layers(nn.Dropout(), bias=False)).eval()(x)
        torch.func.vmap(model)(x[:, None])
        assert not products
        model[2].register_forward_hook(lambda *_: None)
        model(x)
        assert products == [1.0]
