"""Networks: of every variant, whole without numbers or narrow with; other people's, narrowed."""

import pytest
import torch
from torch import nn

from fastalex import AlexNet
from fastalex.kernels._launch import INTERPRETED
from fastalex.model import LocalResponseNorm, WholeWindowConv2d

RUNS_TRITON = torch.cuda.is_available() or INTERPRETED


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


@pytest.fixture
def whole():
    """A full-width network on the meta device: shapes and counts, in no time."""

    def build(variant, **options):
        with torch.device("meta"):
            return AlexNet(variant=variant, **options)

    return build


@pytest.fixture
def narrow():
    """A small network in evaluation mode, its weights large enough for every path to show."""

    def build(variant, **options):
        options = {"width": 1 / 16, "num_classes": 10, "init": "he", **options}
        return AlexNet(variant=variant, **options).eval()

    return build


def googlenet_stem():
    """Szegedy et al. 2014, table 1, narrowed: pool, norm; then norm, pool; padded pools."""
    return [
        nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1), nn.LocalResponseNorm(5),
        nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, padding=1),
    ]  # fmt: skip


def zfnet():
    """Zeiler and Fergus 2013, narrowed: strides of 2, a contrast norm of size 5 after each pool."""
    return [
        nn.Conv2d(3, 8, 7, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.MaxPool2d(3, 2),
    ]  # fmt: skip


def caffenet():
    """Pool, then norm; two groups."""
    return [
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5),
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.LocalResponseNorm(5),
    ]  # fmt: skip


def batchnorm():
    """Nothing to fuse a convolution with."""
    return [
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]


def alexnet():
    """Norm, then pool; a convolution that pads itself; a ReLU more than needed."""
    return [
        WholeWindowConv2d(3, 8, 5, stride=4), nn.ReLU(), LocalResponseNorm(5, groups=2),
        nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.ReLU(),
        nn.LocalResponseNorm(5),
    ]  # fmt: skip


NETWORKS = {f.__name__: f for f in (googlenet_stem, zfnet, caffenet, batchnorm, alexnet)}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A function that makes the modules of a network; its name is the network's."""
    return NETWORKS[request.param]


@pytest.fixture
def runs_triton():
    return RUNS_TRITON


@pytest.fixture(params=["auto", "aten", "triton"] if RUNS_TRITON else ["auto", "aten"])
def mode(request):
    """For `kernels.use`."""
    return request.param


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def image(device):
    """Draws two images of `side` pixels a side."""
    return lambda side=51: torch.randn(2, 3, side, side, device=device)


@pytest.fixture
def gradients():
    """gradients(model, x): output, and the gradients of image and parameters."""

    def run(model, x):
        x = x.clone().requires_grad_()
        y = model(x)
        y.backward(torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape))
        found = [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]
        model.zero_grad()
        return found

    return run
