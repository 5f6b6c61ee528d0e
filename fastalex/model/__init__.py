"""The network, its variants, and the layers of 2012 that torch.nn does not have."""

from fastalex.model.alexnet import AlexNet
from fastalex.model.fused import FusedSequential, accelerate
from fastalex.model.layers import (
    LocalResponseNorm,
    MaxPool2d,
    SpatialResponseNorm,
    UnscaledDropout,
    WholeWindowConv2d,
)
from fastalex.model.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "AlexNet",
    "FusedSequential",
    "LocalResponseNorm",
    "MaxPool2d",
    "SpatialResponseNorm",
    "UnscaledDropout",
    "Variant",
    "WholeWindowConv2d",
    "accelerate",
]
