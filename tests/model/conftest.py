"""Networks of every variant: whole ones without numbers, narrow ones with."""

import pytest
import torch

from fastalex import AlexNet


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
