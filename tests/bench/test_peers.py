"""The stock networks compute what ours do, and nothing of fastalex computes in them."""

import pytest
import torch
from _ablation import MODULES, without
from _peers import TowerNorm, TunedTowerNorm, peer_of
from torch import nn

from fastalex import AlexNet, kernels
from fastalex.kernels import _launch


@pytest.mark.parametrize("norm", [TowerNorm, TunedTowerNorm])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_papers_peer_answers_as_ours_does(norm, dropout):
    """At test the paper halves what passes a dropout of one half, which torch's does not."""
    torch.manual_seed(0)
    ours = AlexNet(10, dropout, width=1 / 8, init="he").eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(peer_of(ours, norm)(x), ours(x), rtol=1e-4, atol=1e-5)


def test_torchvisions_peer_answers_as_ours_does():
    ours = AlexNet(10, variant="torchvision").eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(peer_of(ours)(x), ours(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "torchvision"])
def test_peers_are_made_of_torchs_modules(variant):
    with torch.device("meta"):
        peer = peer_of(AlexNet(variant=variant))
    own = {type(m) for m in peer.modules() if not type(m).__module__.startswith("torch.")}
    assert own <= {TowerNorm}
    assert sum(isinstance(m, nn.Dropout) for m in peer) == 2


def test_the_tuned_norm_stays_in_its_inputs_dtype_under_autocast():
    x = torch.randn(1, 8, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = TunedTowerNorm()(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), TowerNorm()(x.float()), rtol=2e-2, atol=2e-2)


def calls():
    x = torch.randn(2, 8, 7, 7)
    w, key = torch.randn(8, 8, 3, 3), torch.zeros(2, dtype=torch.int64)
    return {
        "conv2d_relu": lambda: kernels.conv2d_relu(x, w),
        "local_response_norm_max_pool2d": lambda: kernels.local_response_norm_max_pool2d(
            x, 5, 1e-4, 0.75, 2.0, 3, 2
        ),
        "max_pool2d": lambda: kernels.max_pool2d(x, 3, 2),
        "keyed_dropout": lambda: kernels.keyed_dropout(x.flatten(1), key),
        "momentum_sgd_": lambda: kernels.momentum_sgd_(
            [w], [torch.zeros_like(w)], [torch.zeros_like(w)], 0.1, 0.9, 0.0
        ),
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="about the interpreter")
@pytest.mark.parametrize("op", MODULES)
def test_without_an_op_no_kernel_of_it_is_launched(op, monkeypatch):
    def refuse(self, grid):
        raise AssertionError("launched")

    monkeypatch.setattr(_launch._Launcher, "__getitem__", refuse)
    with kernels.use("triton"):
        with pytest.raises(AssertionError, match="launched"):
            calls()[op]()
        with without(op):
            calls()[op]()
        with without("all"):
            calls()[op]()
