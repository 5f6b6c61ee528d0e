"""accelerate; and what compiles, traces and infers shapes from a network of fused ops."""

import pytest
import torch
from torch import nn

import fastalex
from fastalex import FusedSequential, accelerate, kernels
from fastalex.model import LocalResponseNorm, MaxPool2d


class Inception(nn.Module):
    """Somebody's own code between Sequentials, with layers that stand alone."""

    def __init__(self, stem):
        super().__init__()
        self.stem = nn.Sequential(*stem)
        self.norm = nn.LocalResponseNorm(5, 1e-3)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.branch = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU()) for _ in "ab"])

    def forward(self, x):
        x = self.norm(self.stem(x))
        return torch.cat([branch(self.pool(x)) for branch in self.branch], 1)


@pytest.mark.parametrize("network", ["googlenet_stem"], indirect=True)
def test_accelerate(network, mode, device, image, gradients):
    model = Inception(network()).to(device)
    x, keys, modules = image(), list(model.state_dict()), list(model.modules())
    expected = gradients(model, x)
    assert accelerate(model) is model
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert type(model.stem) is type(model.branch[1]) is FusedSequential
    assert type(model.norm) is LocalResponseNorm
    assert type(model.pool) is MaxPool2d
    with kernels.use(mode):
        for got, wanted in zip(gradients(model, x), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    accelerate(model)
    torch.testing.assert_close(model(x), expected[0], rtol=1e-4, atol=1e-4)


def test_accelerate_leaves_subclasses_alone():
    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    model = accelerate(nn.ModuleList([Own(nn.ReLU()), nn.Sequential(nn.ReLU())]))
    assert [type(m) for m in model] == [Own, FusedSequential]


def test_accelerate_wants_a_module():
    with pytest.raises(
        TypeError, match=r"`model` must be a torch.nn.Module, got <class 'function'>"
    ):
        accelerate(lambda x: x)


def test_compiles_whole(network, device, image, gradients):
    model = accelerate(nn.Sequential(*network())).to(device)
    x = image()
    expected = gradients(model, x)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(gradients(compiled, x), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", fastalex.model.VARIANTS)
def test_fx_traces_every_variant(variant):
    """As torchvision's create_feature_extractor does."""
    model = fastalex.AlexNet(4, variant=variant, width=0.02).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 99, 99)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("variant", ["paper", "original", "torchvision"])
def test_shapes_on_the_meta_device(variant):
    with torch.device("meta"):
        model = fastalex.AlexNet(4, variant=variant, width=0.02)
        assert model(torch.empty(2, 3, 99, 99)).shape == (2, 4)


def test_fx_sees_every_module():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    traced = torch.fx.symbolic_trace(FusedSequential(*plain))
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert calls == ["0", "1", "2"]
