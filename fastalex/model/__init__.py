"""The network, its variants, and the layers of 2012 that torch.nn does not have."""

from fastalex.model.alexnet import AlexNet
from fastalex.model.layers import (
    LocalResponseNorm,
    SpatialResponseNorm,
    UnscaledDropout,
    WholeWindowConv2d,
)
from fastalex.model.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "AlexNet",
    "LocalResponseNorm",
    "SpatialResponseNorm",
    "UnscaledDropout",
    "Variant",
    "WholeWindowConv2d",
]
