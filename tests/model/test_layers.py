"""The layers of 2012, against formulas written out."""

import pytest
import torch
import torch.nn.functional as F

from fastalex.model import (
    LocalResponseNorm,
    SpatialResponseNorm,
    UnscaledDropout,
    WholeWindowConv2d,
)


@pytest.mark.parametrize("size", range(11, 24))
def test_conv_covers_every_pixel(size):
    conv = WholeWindowConv2d(2, 3, 11, 4)
    y = conv(torch.randn(1, 2, size, size + 1))
    assert y.shape == (1, 3, 1 + -(-(size - 11) // 4), 1 + -(-(size + 1 - 11) // 4))


def test_conv_is_a_conv_on_what_fits():
    conv = WholeWindowConv2d(3, 8, 11, 4, bias=False)
    x = torch.randn(2, 3, 27, 23)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, stride=4))
    assert conv.bias is None
    padded = F.pad(x[..., :-3], (0, 3))
    torch.testing.assert_close(conv(x[..., :-3]), F.conv2d(padded, conv.weight, stride=4))


def test_conv_keeps_channels_last():
    x = torch.randn(2, 3, 24, 24).to(memory_format=torch.channels_last)
    conv = WholeWindowConv2d(3, 8, 11, 4).to(memory_format=torch.channels_last)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)


def test_local_response_norm_module():
    x = 20 * torch.randn(2, 8, 3, 3)
    norm = LocalResponseNorm(5, 1e-2, 0.75, 2.0, groups=2)
    halves = [F.local_response_norm(half, 5, 1e-2, 0.75, 2.0) for half in x.chunk(2, 1)]
    torch.testing.assert_close(norm(x), torch.cat(halves, 1))
    assert repr(norm) == "LocalResponseNorm(5, alpha=0.01, beta=0.75, k=2.0, groups=2)"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_spatial_norm_is_the_formula(dtype):
    """Sum over 5x5 pixels of the same map, zero outside, over 25 at the border too."""
    x = (300 * torch.randn(2, 3, 6, 7)).to(dtype)
    windows = F.pad(x.double(), (2, 2, 2, 2)).unfold(2, 5, 1).unfold(3, 5, 1)
    expected = x.double() / (1 + 0.001 / 25 * windows.square().sum((-2, -1))) ** 0.75
    y = SpatialResponseNorm()(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))


def test_spatial_norm_of_one_pixel_and_its_gradient():
    assert SpatialResponseNorm()(torch.full((1, 1, 1, 1), 100.0)).item() == pytest.approx(
        100 / (1 + 0.001 / 25 * 1e4) ** 0.75
    )
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SpatialResponseNorm(alpha=0.5), x)


@pytest.mark.parametrize("size", [4, 0, -1])
def test_spatial_norm_wants_a_middle(size):
    with pytest.raises(ValueError, match=f"must be odd and positive, got {size}"):
        SpatialResponseNorm(size)


def test_dropout_zeros_in_training_and_scales_at_test():
    dropout = UnscaledDropout(0.3)
    x = torch.full((200, 500), 2.0, requires_grad=True)
    y = dropout.train()(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, (y > 0).float())
    assert torch.equal(dropout.eval()(x), x * 0.7)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_everything(p):
    x = torch.randn(4, 5)
    for mode in (True, False):
        assert torch.equal(UnscaledDropout(p).train(mode)(x), x * (1 - p))


def test_dropout_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="probability"):
        UnscaledDropout(1.5)
