"""AlexNet in other people's code: drop-in, transfer learning, copies, dtypes, torch.compile."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastalex import AlexNet
from fastalex.model import VARIANTS

NAMES = list(VARIANTS)

TORCHVISION_STATE = [
    ("features.0.weight", (64, 3, 11, 11)),
    ("features.0.bias", (64,)),
    ("features.3.weight", (192, 64, 5, 5)),
    ("features.3.bias", (192,)),
    ("features.6.weight", (384, 192, 3, 3)),
    ("features.6.bias", (384,)),
    ("features.8.weight", (256, 384, 3, 3)),
    ("features.8.bias", (256,)),
    ("features.10.weight", (256, 256, 3, 3)),
    ("features.10.bias", (256,)),
    ("classifier.1.weight", (4096, 9216)),
    ("classifier.1.bias", (4096,)),
    ("classifier.4.weight", (4096, 4096)),
    ("classifier.4.bias", (4096,)),
    ("classifier.6.weight", (1000, 4096)),
    ("classifier.6.bias", (1000,)),
]


def torchvision_written_out(width):
    """The layers of torchvision.models.AlexNet, in the order that draws its initial weights."""
    a, b, c, d, units = (round(n * width) for n in (64, 192, 384, 256, 4096))
    relu = nn.ReLU
    features = nn.Sequential(
        nn.Conv2d(3, a, 11, stride=4, padding=2), relu(), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2), relu(), nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, padding=1), relu(),
        nn.Conv2d(c, d, 3, padding=1), relu(),
        nn.Conv2d(d, d, 3, padding=1), relu(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(d * 36, units), relu(),
        nn.Dropout(), nn.Linear(units, units), relu(),
        nn.Linear(units, 1000),
    )  # fmt: skip
    return nn.ModuleDict({"features": features, "classifier": classifier})


def test_torchvision_state_dict(whole):
    state = whole("torchvision").state_dict()
    assert [(key, tuple(value.shape)) for key, value in state.items()] == TORCHVISION_STATE


def test_torchvision_numbers():
    """The same seed gives the same weights, and the same weights the same logits."""
    torch.manual_seed(5)
    ours = AlexNet(variant="torchvision", width=1 / 16).eval()
    torch.manual_seed(5)
    plain = torchvision_written_out(1 / 16).eval()
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    x = torch.randn(2, 3, 224, 224)
    expected = plain["classifier"](torch.flatten(plain["features"](x), 1))
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_last_layer_is_replaceable(name, whole):
    model = whole(name)
    assert isinstance(model.classifier[6], nn.Linear)
    assert model.classifier[6].out_features == 1000
    model.classifier[6] = nn.Linear(4096, 10, device="meta")
    assert model(torch.empty(2, 3, 227, 227, device="meta")).shape == (2, 10)
    assert dict(model.named_layers())["fc8"] is model.classifier[6]


@pytest.mark.parametrize("name", NAMES)
def test_named_layers(name, whole):
    named = list(whole(name).named_layers())
    assert [n for n, _ in named] == [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
    assert all(isinstance(m, nn.Conv2d) for _, m in named[:5])
    assert all(isinstance(m, nn.Linear) for _, m in named[5:])


@pytest.mark.parametrize("name", NAMES)
def test_slices_and_hooks(name, narrow):
    model = narrow(name)
    x = torch.randn(1, 3, 227, 227)
    assert model.features[:3](x).shape[1] == {"torchvision": 4}.get(name, 6)
    seen = []
    model.classifier[4].register_forward_hook(lambda _m, _i, y: seen.append(y.shape))
    model(x)
    assert seen == [(1, 256)]


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_state_round_trip(name, narrow):
    model = narrow(name)
    x = torch.randn(1, 3, 224, 224)
    y = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
        assert other.variant == VARIANTS[name]
        assert other.width == 1 / 16
    fresh = narrow(name)
    assert not torch.equal(fresh(x), y)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), y)


@pytest.mark.parametrize("name", NAMES)
def test_trains_in_bfloat16_and_channels_last(name, narrow):
    model = narrow(name).train().to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(2, 3, 227, 227, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = model(x)
    assert y.dtype == torch.bfloat16
    nn.functional.cross_entropy(y, torch.tensor([1, 2])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["paper", "caffe", "torchvision"])
def test_dropout_differs_between_training_and_test(name, narrow):
    """Only the paper's way scales at test: undoing it gives the logits without dropout."""
    model = narrow(name, dropout=0.5)
    without = narrow(name, dropout=0.0)
    without.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 227, 227)
    same = torch.allclose(model(x), without(x))
    assert same == (name != "paper")
    torch.manual_seed(1)
    first = model.train()(x)
    assert not torch.equal(first, model(x))
    assert torch.equal(without.train()(x), without.eval()(x))


def test_other_image_sizes(narrow):
    for name in NAMES:
        for size in (67, 256):
            assert narrow(name)(torch.randn(1, 3, size, size + 5)).shape == (1, 10)


def test_width(whole):
    model = whole("paper", width=0.25, num_classes=7)
    widths = [m.weight.shape[0] for _, m in model.named_layers()]
    assert widths == [24, 64, 96, 96, 64, 1024, 1024, 7]
    assert model.width == 0.25
    tiny = whole("paper", width=1e-6)
    assert [m.weight.shape[0] for _, m in tiny.named_layers()] == [2] * 7 + [1000]
    odd = whole("paper", width=0.0329)
    assert all(m.weight.shape[0] % 2 == 0 for _, m in odd.named_layers())
    assert odd(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


def test_compiles_whole_and_agrees(narrow):
    """`original` has every kind of layer but BatchNorm; dropout 0, so that both draw the same.

    Scalar code (simdlen 1) spends half the time in the C++ compiler.
    """
    model = narrow("original", dropout=0.0).train()
    x = torch.randn(2, 3, 224, 224)
    labels = torch.tensor([3, 1])

    def gradients(function):
        model.zero_grad()
        nn.functional.cross_entropy(function(x), labels).backward()
        return [p.grad.clone() for p in model.parameters()]

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, options={"cpp.simdlen": 1})
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    for got, expected in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "original"])
def test_every_other_variant_is_one_graph(name, narrow):
    torch.compiler.reset()
    model = torch.compile(narrow(name).train(), fullgraph=True, backend="aot_eager")
    model(torch.randn(2, 3, 227, 227)).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "vgg"}, "`variant` must be one of paper, original, caffe, .*; got 'vgg'"),
        ({"init": "xavier"}, r"`init` must be None \(.*\) or one of paper, .*, he; got 'xavier'"),
        ({"num_classes": 0}, "`num_classes` must be an integer of 1 or more, got 0"),
        ({"num_classes": 1.5}, "`num_classes` must be an integer of 1 or more, got 1.5"),
        ({"dropout": 1.5}, "`dropout` must be a probability, 0 to 1, got 1.5"),
        ({"dropout": float("nan")}, "`dropout` must be a probability"),
        ({"width": 0}, "`width` must be a finite number above 0"),
        ({"width": float("inf")}, "`width` must be a finite number above 0 .*, got inf"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        AlexNet(**options)


def test_torchvisions_positional_arguments():
    model = AlexNet(10, 0.25, width=1 / 16)
    assert model.classifier[6].out_features == 10
    assert model.classifier[2].p == 0.25
    assert model.variant.name == "paper"
