"""The networks called AlexNet, each a table of layers beside its facts.

`AlexNet` builds a table into modules; whoever feeds a network reads its `Variant.input`.
Sources: *paper*: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional
Neural Networks", NIPS 2012. *2012 code*: computerhistory/AlexNet-Source-Code, layers-145.cfg and
layer-params-145.cfg. *Caffe*: BVLC/caffe, models/bvlc_alexnet and models/bvlc_reference_caffenet.
*torchvision*: torchvision/models/alexnet.py, after Krizhevsky 2014, arXiv 1404.5997.

A comment beside a row is the output of its convolution and of its pool, channels x height x width,
for an image of `input.size`. All pools are 3x3, stride 2; all LRN windows are 5 maps, beta .75.
"""

from dataclasses import dataclass

from fastalex.inputs import InputFormat
from fastalex.model.initialization import Initialization, Kaiming, Normal, TorchDefault


@dataclass(frozen=True)
class Conv:
    """kernel x kernel; group g of the output sees group g of the input alone."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True
    whole_windows: bool = False  # zeros on the right and bottom until the last window is whole


@dataclass(frozen=True)
class Relu:
    inplace: bool = False


@dataclass(frozen=True)
class Lrn:
    """x / (k + alpha / 5 * sum of squares over 5 maps of its own group)^.75."""

    alpha: float
    k: float
    groups: int = 1


@dataclass(frozen=True)
class SpatialNorm:
    """x / (1 + .001 / 25 * sum of squares over 5x5 pixels of its own map)^.75."""


@dataclass(frozen=True)
class BatchNorm:
    """torch.nn.BatchNorm2d with its defaults."""


@dataclass(frozen=True)
class Pool:
    """Maximum over 3x3, stride 2; windows that do not fit are left out."""


@dataclass(frozen=True)
class Dropout:
    """Inverted: scaled up in training. Not inverted: scaled down at test."""

    inverted: bool


@dataclass(frozen=True)
class Linear:
    units: int | None  # None: num_classes


Layer = Conv | Relu | Lrn | SpatialNorm | BatchNorm | Pool | Dropout | Linear


@dataclass(frozen=True)
class Variant:
    """A network: its tables, what it wants at its input, and how its weights start."""

    name: str
    input: InputFormat
    init: Initialization
    features: tuple[Layer, ...]
    classifier: tuple[Layer, ...]


# fmt: off

# Dropout on the outputs of fc6 and fc7, halved at test (paper, section 4.2; 2012 code)
_CLASSIFIER_2012 = (
    Linear(4096), Relu(), Dropout(inverted=False),
    Linear(4096), Relu(), Dropout(inverted=False),
    Linear(None),
)
_CLASSIFIER_CAFFE = (
    Linear(4096), Relu(), Dropout(inverted=True),
    Linear(4096), Relu(), Dropout(inverted=True),
    Linear(None),
)

#               conv1 conv2 conv3 conv4 conv5  fc6   fc7   fc8
_PAPER_INIT = Normal(
    std=        (.01,  .01,  .01,  .01,  .01,  .01,  .01,  .01),
    bias=       (0.,   1.,   0.,   1.,   1.,   1.,   1.,   0.),
)
_ORIGINAL_INIT = Normal(
    std=        (.01,  .01,  .03,  .03,  .03,  .01,  .01,  .01),
    bias=       (0.,   1.,   0.,   1.,   1.,   1.,   1.,   0.),
)
_CAFFE_INIT = Normal(
    std=        (.01,  .01,  .01,  .01,  .01,  .005, .005, .01),
    bias=       (0.,   .1,   0.,   .1,   .1,   .1,   .1,   0.),
)
_CAFFENET_INIT = Normal(
    std=        (.01,  .01,  .01,  .01,  .01,  .005, .005, .01),
    bias=       (0.,   1.,   0.,   1.,   1.,   1.,   1.,   0.),
)

# As printed: the factor 1e-4 stands before the sum (section 3.3), hence alpha = 5 * 1e-4
PAPER = Variant(
    name="paper", input=InputFormat(size=224, mean="image"), init=_PAPER_INIT,
    features=(
        Conv(96, 11, stride=4, whole_windows=True), Relu(),
        Lrn(5e-4, k=2, groups=2), Pool(),                        # 96x55x55 -> 27x27
        Conv(256, 5, padding=2, groups=2), Relu(),
        Lrn(5e-4, k=2, groups=2), Pool(),                        # 256x27x27 -> 13x13
        Conv(384, 3, padding=1), Relu(),                         # 384x13x13, sees both towers
        Conv(384, 3, padding=1, groups=2), Relu(),               # 384x13x13
        Conv(256, 3, padding=1, groups=2), Relu(), Pool(),       # 256x13x13 -> 6x6
    ),
    classifier=_CLASSIFIER_2012,
)

# As trained (cfg 145): norm and pool before ReLU in block 1, a second norm in block 2, pool before
# ReLU in block 5; alpha is divided by the window's 5; conv3 to conv5 start at .03
ORIGINAL = Variant(
    name="original", input=InputFormat(size=224, mean="center"), init=_ORIGINAL_INIT,
    features=(
        Conv(96, 11, stride=4, whole_windows=True),
        Lrn(1e-4, k=2, groups=2), Pool(), Relu(),                # 96x55x55 -> 27x27
        Conv(256, 5, padding=2, groups=2), Relu(),
        Lrn(1e-4, k=2, groups=2), SpatialNorm(), Pool(),         # 256x27x27 -> 13x13
        Conv(384, 3, padding=1), Relu(),                         # 384x13x13, sees both towers
        Conv(384, 3, padding=1, groups=2), Relu(),               # 384x13x13
        Conv(256, 3, padding=1, groups=2), Pool(), Relu(),       # 256x13x13 -> 6x6
    ),
    classifier=_CLASSIFIER_2012,
)

# bvlc_alexnet: LRN across both towers with k = 1, fc6 and fc7 at .005, biases .1
CAFFE = Variant(
    name="caffe", input=InputFormat(size=227, mean="image", color="BGR"), init=_CAFFE_INIT,
    features=(
        Conv(96, 11, stride=4), Relu(), Lrn(1e-4, k=1), Pool(),              # 96x55x55 -> 27x27
        Conv(256, 5, padding=2, groups=2), Relu(), Lrn(1e-4, k=1), Pool(),   # 256x27x27 -> 13x13
        Conv(384, 3, padding=1), Relu(),                                     # 384x13x13
        Conv(384, 3, padding=1, groups=2), Relu(),                           # 384x13x13
        Conv(256, 3, padding=1, groups=2), Relu(), Pool(),                   # 256x13x13 -> 6x6
    ),
    classifier=_CLASSIFIER_CAFFE,
)

# bvlc_reference_caffenet: as bvlc_alexnet with pool before norm, and biases 1
CAFFENET = Variant(
    name="caffenet", input=InputFormat(size=227, mean="image", color="BGR"), init=_CAFFENET_INIT,
    features=(
        Conv(96, 11, stride=4), Relu(), Pool(), Lrn(1e-4, k=1),              # 96x55x55 -> 27x27
        Conv(256, 5, padding=2, groups=2), Relu(), Pool(), Lrn(1e-4, k=1),   # 256x27x27 -> 13x13
        Conv(384, 3, padding=1), Relu(),                                     # 384x13x13
        Conv(384, 3, padding=1, groups=2), Relu(),                           # 384x13x13
        Conv(256, 3, padding=1, groups=2), Relu(), Pool(),                   # 256x13x13 -> 6x6
    ),
    classifier=_CLASSIFIER_CAFFE,
)

# One tower, fewer maps, no norm, dropout before fc6 and fc7. Its users divide the channels by
# (.229, .224, .225) * 255, ImageNet's standard deviations; .225 * 255 stands for the three
TORCHVISION = Variant(
    name="torchvision", init=TorchDefault(), input=InputFormat(size=224, mean="channel", std=57.4),
    features=(
        Conv(64, 11, stride=4, padding=2), Relu(inplace=True), Pool(),       # 64x55x55 -> 27x27
        Conv(192, 5, padding=2), Relu(inplace=True), Pool(),                 # 192x27x27 -> 13x13
        Conv(384, 3, padding=1), Relu(inplace=True),                         # 384x13x13
        Conv(256, 3, padding=1), Relu(inplace=True),                         # 256x13x13
        Conv(256, 3, padding=1), Relu(inplace=True), Pool(),                 # 256x13x13 -> 6x6
    ),
    classifier=(
        Dropout(inverted=True), Linear(4096), Relu(inplace=True),
        Dropout(inverted=True), Linear(4096), Relu(inplace=True),
        Linear(None),
    ),
)

# The paper's network with every map connected to every map, and normalized across all of them
SINGLE = Variant(
    name="single", input=InputFormat(size=224, mean="image"), init=_PAPER_INIT,
    features=(
        Conv(96, 11, stride=4, whole_windows=True), Relu(),
        Lrn(5e-4, k=2), Pool(),                                  # 96x55x55 -> 27x27
        Conv(256, 5, padding=2), Relu(), Lrn(5e-4, k=2), Pool(),  # 256x27x27 -> 13x13
        Conv(384, 3, padding=1), Relu(),                         # 384x13x13
        Conv(384, 3, padding=1), Relu(),                         # 384x13x13
        Conv(256, 3, padding=1), Relu(), Pool(),                 # 256x13x13 -> 6x6
    ),
    classifier=_CLASSIFIER_2012,
)

# The paper's network with BatchNorm between each convolution and its ReLU instead of LRN; it takes
# the mean out, so the convolutions have no bias. Initialised as torchvision's VGG with BatchNorm
BATCHNORM = Variant(
    name="batchnorm", input=InputFormat(size=224, mean="image"),
    init=Kaiming("fan_out", linear_std=0.01),
    features=(
        Conv(96, 11, stride=4, bias=False, whole_windows=True),
        BatchNorm(), Relu(), Pool(),                                         # 96x55x55 -> 27x27
        Conv(256, 5, padding=2, groups=2, bias=False),
        BatchNorm(), Relu(), Pool(),                                         # 256x27x27 -> 13x13
        Conv(384, 3, padding=1, bias=False), BatchNorm(), Relu(),            # 384x13x13
        Conv(384, 3, padding=1, groups=2, bias=False), BatchNorm(), Relu(),  # 384x13x13
        Conv(256, 3, padding=1, groups=2, bias=False),
        BatchNorm(), Relu(), Pool(),                                         # 256x13x13 -> 6x6
    ),
    classifier=_CLASSIFIER_CAFFE,
)

# fmt: on

VARIANTS: dict[str, Variant] = {
    v.name: v for v in (PAPER, ORIGINAL, CAFFE, CAFFENET, TORCHVISION, SINGLE, BATCHNORM)
}

INITIALIZATIONS: dict[str, Initialization] = {
    **{name: variant.init for name, variant in VARIANTS.items()},
    "he": Kaiming("fan_in"),
}
