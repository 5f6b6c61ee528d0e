"""Images in blocks: every variant's first layer gives what it gives for plain images."""

import pytest
import torch
from torch import nn

from fastalex import AlexNet, FusedSequential, kernels
from fastalex.model import VARIANTS
from fastalex.model.blocks import Blocks, is_in_blocks, take_blocks

PADDING = {"torchvision": (2, 2), "caffe": (0, 1), "caffenet": (0, 1)}


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_network(variant):
    torch.manual_seed(0)
    model = AlexNet(4, 0.0, variant=variant, width=0.03).double()
    size = model.variant.input.size
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    expected, wanted = model(images), gradients(model, images)
    blocks = take_blocks(model.features[0], size)
    assert blocks == Blocks(4, PADDING.get(variant, (0, 4)))
    x = blocks.of(images)
    assert x.shape == (2, 48, 57, 57)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(model, x), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(images), expected)  # plain ones are still taken


def test_blocks_are_those_of_the_input_kernel():
    pixels = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    mean = torch.full((3,), 100.0)
    blocks = Blocks(4, (2, 2))
    expected = blocks.of(kernels.images(pixels, mean))
    got = kernels.images(pixels, mean, space_to_depth=4, padding=(2, 2))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("size", [224, 227, 229, 230, 99])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_other_sizes_and_strides(size, stride):
    conv = nn.Conv2d(3, 8, 7, stride, padding=1).double()
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    plain = FusedSequential(conv, nn.Tanh())
    expected = plain(images)
    blocks = take_blocks(conv, size)
    if blocks is None:
        assert not is_in_blocks(conv, images)
        assert (size + 2 - 7) % stride > -7 % stride  # rows that no window sees
    else:
        assert min(blocks.padding) >= 0
        torch.testing.assert_close(plain(blocks.of(images)), expected)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 4, 4, groups=2), nn.Conv2d(64, 8, 4, 4),
        nn.Conv2d(3, 8, 4, (4, 2)), nn.Conv2d(3, 8, 4, 4, padding_mode="reflect", padding=1),
        nn.Conv2d(3, 8, 4, 4, padding="valid"), nn.Conv2d(3, 8, (4, 8), 4), nn.Linear(3, 4),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_in_blocks(conv):
    assert take_blocks(conv, 64) is None
    assert not hasattr(conv, "takes_blocks")


def test_unasked_for_blocks_are_an_error():
    model = FusedSequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
    with pytest.raises(RuntimeError, match=r"expected input.* to have 3 channels, but got 48"):
        model(torch.randn(1, 48, 4, 4))
