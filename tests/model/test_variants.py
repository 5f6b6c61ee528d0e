"""What each variant is: layers and their order, shapes, parameters, input, how weights start."""

import pytest
import torch
from torch import nn

from fastalex import AlexNet
from fastalex.model import VARIANTS, LocalResponseNorm

NAMES = ["paper", "original", "caffe", "caffenet", "torchvision", "single", "batchnorm"]
LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]

PARAMETERS = {
    "paper": 60_965_224,
    "original": 60_965_224,
    "caffe": 60_965_224,
    "caffenet": 60_965_224,
    "torchvision": 61_100_840,
    "single": 62_378_344,
    # 1,376 fewer biases and 2,752 more scales and shifts than the paper's
    "batchnorm": 60_965_224 - 1_376 + 2_752,
}

SHORT = {
    "WholeWindowConv2d": "conv",
    "Conv2d": "conv",
    "ReLU": "relu",
    "LocalResponseNorm": "lrn",
    "SpatialResponseNorm": "spatial",
    "BatchNorm2d": "bn",
    "MaxPool2d": "pool",
    "Linear": "fc",
    "Dropout": "dropout",
    "UnscaledDropout": "unscaled-dropout",
}
PAPER_ORDER = (
    "conv relu lrn pool  conv relu lrn pool  conv relu  conv relu  conv relu pool",
    "fc relu unscaled-dropout  fc relu unscaled-dropout  fc",
)
ORDER = {
    "paper": PAPER_ORDER,
    "single": PAPER_ORDER,
    "original": (
        "conv lrn pool relu  conv relu lrn spatial pool  conv relu  conv relu  conv pool relu",
        PAPER_ORDER[1],
    ),
    "caffe": (PAPER_ORDER[0], "fc relu dropout  fc relu dropout  fc"),
    "caffenet": (
        "conv relu pool lrn  conv relu pool lrn  conv relu  conv relu  conv relu pool",
        "fc relu dropout  fc relu dropout  fc",
    ),
    "torchvision": (
        "conv relu pool  conv relu pool  conv relu  conv relu  conv relu pool",
        "dropout fc relu  dropout fc relu  fc",
    ),
    "batchnorm": (
        "conv bn relu pool  conv bn relu pool  conv bn relu  conv bn relu  conv bn relu pool",
        "fc relu dropout  fc relu dropout  fc",
    ),
}

# of the layers with weights; the 2012 code's side is 1 + ceil((n - 11) / 4), Caffe's drops the rest
CHANNELS = dict.fromkeys(NAMES, (96, 256, 384, 384, 256)) | {
    "torchvision": (64, 192, 384, 256, 256)
}
SIDES = {(name, size): (55, 27, 13, 13, 13) for name in NAMES for size in (224, 227)} | {
    ("caffe", 224): (54, 26, 12, 12, 12),
    ("caffenet", 224): (54, 26, 12, 12, 12),
    ("torchvision", 227): (56, 27, 13, 13, 13),
}


def test_the_names():
    assert list(VARIANTS) == NAMES
    assert all(VARIANTS[name].name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name, whole):
    assert sum(p.numel() for p in whole(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_order_of_layers(name, whole):
    model = whole(name)
    features, classifier = ORDER[name]
    assert [SHORT[type(m).__name__] for m in model.features] == features.split()
    assert [SHORT[type(m).__name__] for m in model.classifier] == classifier.split()


@pytest.mark.parametrize("size", [224, 227])
@pytest.mark.parametrize("name", NAMES)
def test_every_layers_output_shape(name, size, whole):
    model = whole(name)
    shapes = {}
    for layer, module in model.named_layers():
        module.register_forward_hook(
            lambda _m, _i, out, layer=layer: shapes.update({layer: tuple(out.shape)})
        )
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 1000)
    expected = {
        f"conv{i + 1}": (2, channels, side, side)
        for i, (channels, side) in enumerate(zip(CHANNELS[name], SIDES[name, size], strict=True))
    }
    assert shapes == expected | {"fc6": (2, 4096), "fc7": (2, 4096), "fc8": (2, 1000)}


@pytest.mark.parametrize("name", NAMES)
def test_six_by_six_before_the_average(name, whole):
    """At its own size the average pool has nothing to average."""
    size = VARIANTS[name].input.size
    images = torch.empty(2, 3, size, size, device="meta")
    assert whole(name).features(images).shape == (2, 256, 6, 6)


@pytest.mark.parametrize("name", NAMES)
def test_groups(name, whole):
    """conv3 alone sees both towers; torchvision's and the single network have one tower."""
    towers = 1 if name in ("torchvision", "single") else 2
    groups = [m.groups for n, m in whole(name).named_layers() if n.startswith("conv")]
    assert groups == [1, towers, 1, towers, towers]


@pytest.mark.parametrize(
    ("name", "alpha", "k", "groups"),
    [
        ("paper", 5e-4, 2, 2),
        ("original", 1e-4, 2, 2),
        ("caffe", 1e-4, 1, 1),
        ("caffenet", 1e-4, 1, 1),
        ("single", 5e-4, 2, 1),
    ],
)
def test_norm_constants(name, alpha, k, groups, whole):
    norms = [m for m in whole(name).features if isinstance(m, LocalResponseNorm)]
    assert [(n.size, n.alpha, n.beta, n.k, n.groups) for n in norms] == [
        (5, alpha, 0.75, k, groups)
    ] * 2


def test_pools_and_dropout(whole):
    for name in NAMES:
        model = whole(name, dropout=0.25)
        for module in model.modules():
            if isinstance(module, nn.MaxPool2d):
                assert (module.kernel_size, module.stride, module.padding) == (3, 2, 0)
                assert not module.ceil_mode
            if isinstance(module, nn.Dropout):
                assert module.p == 0.25
            if isinstance(module, nn.ReLU):
                assert module.inplace == (name == "torchvision")


def test_input_formats():
    formats = {name: variant.input for name, variant in VARIANTS.items()}
    assert {n: (f.size, f.mean, f.std, f.color) for n, f in formats.items()} == {
        "paper": (224, "image", 1.0, "RGB"),
        "original": (224, "center", 1.0, "RGB"),
        "caffe": (227, "image", 1.0, "BGR"),
        "caffenet": (227, "image", 1.0, "BGR"),
        "torchvision": (224, "channel", 57.4, "RGB"),
        "single": (224, "image", 1.0, "RGB"),
        "batchnorm": (224, "image", 1.0, "RGB"),
    }


# conv1 ... conv5, fc6, fc7, fc8
TENTHS = (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0)
ONES = (0, 1, 0, 1, 1, 1, 1, 0)
NORMAL = {
    "paper": ((0.01,) * 8, ONES),
    "original": ((0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01), ONES),
    "caffe": ((0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01), TENTHS),
    "caffenet": ((0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01), ONES),
    "single": ((0.01,) * 8, ONES),
}


def check_normal(model, std, bias):
    for (name, layer), s, b in zip(model.named_layers(), std, bias, strict=True):
        n = layer.weight.numel()
        assert abs(layer.weight.std() / s - 1) < 4 / (2 * n) ** 0.5, name
        assert abs(layer.weight.mean() / s) < 4 / n**0.5, name
        assert layer.bias is None or (layer.bias == b).all(), name


@pytest.mark.parametrize("name", NORMAL)
def test_initial_weights(name):
    check_normal(AlexNet(variant=name, width=0.25), *NORMAL[name])


def test_initialisation_of_another_variant():
    check_normal(AlexNet(variant="torchvision", init="original", width=0.25), *NORMAL["original"])
    check_normal(AlexNet(variant="batchnorm", init="caffe", width=0.25), *NORMAL["caffe"])


def test_he_initialisation():
    model = AlexNet(init="he", width=0.25)
    fan_in = [363, 300, 576, 432, 432, 2304, 1024, 1024]
    check_normal(model, [(2 / n) ** 0.5 for n in fan_in], [0] * 8)


def test_batchnorm_initialisation():
    model = AlexNet(variant="batchnorm", width=0.25)
    fan_out = [24 * 121, 64 * 25, 96 * 9, 96 * 9, 64 * 9]
    std = [(2 / n) ** 0.5 for n in fan_out] + [0.01] * 3
    check_normal(model, std, [0] * 8)
    named = {id(p) for _, m in model.named_layers() for p in m.parameters()}
    assert [n for n, _ in model.named_layers()] == LAYERS
    rest = [n for n, p in model.named_parameters() if id(p) not in named]
    norms = (1, 5, 9, 12, 15)
    assert rest == [f"features.{i}.{kind}" for i in norms for kind in ("weight", "bias")]
    assert all(m.bias is None for n, m in model.named_layers() if n.startswith("conv"))


def logits_std(variant, x):
    """Standard deviation across images, a mean over the classes."""
    with torch.no_grad():
        return AlexNet(variant=variant).eval()(x).std(0).mean().item()


def test_trap_logits_at_initialisation_differ_between_images():
    """0..255 pictures: about .035 for the 2012 code's weights, .0024 for the paper's.

    At unit variance the paper's are all but constant, and training would stall at ln(1000).
    """
    coarse = torch.randn(8, 3, 7, 7)
    pictures = 60 * nn.functional.interpolate(coarse, size=224, mode="bilinear")
    assert 0.015 < logits_std("original", pictures) < 0.07
    assert 0.001 < logits_std("paper", pictures) < 0.005
    assert logits_std("paper", pictures / 60) < 0.0002
