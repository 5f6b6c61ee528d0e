"""Which way a step is shared, and what is refused."""

from dataclasses import replace

import pytest

from fastalex.errors import UsageError
from fastalex.model import VARIANTS
from fastalex.model.exchange import Group, share
from fastalex.model.towers import has_towers
from fastalex.train.modes import micro_batches, mode_of

from .conftest import SMALL


def test_which_networks_are_made_of_two_towers():
    """Caffe's normalize across both; torchvision's and single are connected throughout."""
    towers = {name for name, variant in VARIANTS.items() if has_towers(variant)}
    assert towers == {"paper", "original", "batchnorm"}


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "one"),
        ({"parallel": "hybrid"}, "one"),
        ({"gpus": 2}, "towers"),
        ({"gpus": 4}, "data"),
        ({"gpus": 2, "variant": "caffe"}, "data"),
        ({"gpus": 2, "parallel": "hybrid"}, "hybrid"),
        ({"gpus": 2, "parallel": "data"}, "data"),
    ],
)
def test_the_default(settings, mode):
    assert mode_of(replace(SMALL, **settings)) == mode


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpus": 4, "parallel": "towers"}, "there are 4 GPUs; choose data or hybrid"),
        ({"gpus": 2, "parallel": "towers", "variant": "caffe"}, "variant caffe is not made of two"),
        ({"gpus": 3}, "--batch-size 8: --parallel data .* a multiple of 3"),
        ({"gpus": 2, "batch_size": 9, "parallel": "hybrid"}, "--batch-size 9"),
        ({"gpus": 3, "batch_size": 9, "parallel": "hybrid", "width": 1.0}, "shares the 4096 units"),
        ({"gpus": 2, "micro_batches": 3}, "--micro-batches 3 does not divide the 8 images"),
        ({"gpus": 2, "micro_batches": 8, "parallel": "hybrid"}, "does not divide the 4 images"),
        ({"gpus": 2, "micro_batches": 2, "variant": "batchnorm"}, "normalizes over the whole"),
    ],
)
def test_what_does_not_fit(settings, words):
    with pytest.raises(UsageError, match=words):
        mode_of(replace(SMALL, **settings))


@pytest.mark.parametrize(
    ("settings", "mode", "parts"),
    [
        ({}, "towers", 2),
        ({"batch_size": 9}, "towers", 1),
        ({"variant": "batchnorm"}, "towers", 1),
        ({"batch_size": 6}, "hybrid", 1),
        ({"micro_batches": 4}, "hybrid", 4),
        ({"micro_batches": 4}, "data", 1),
    ],
)
def test_micro_batches(settings, mode, parts):
    assert micro_batches(replace(SMALL, gpus=2, **settings), mode) == parts


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [4, 5, 1000])
def test_shares_cover_everything_in_order(count, size):
    shares = [share(count, Group("", rank, size)) for rank in range(size)]
    assert [unit for each in shares for unit in each] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
