"""Where reimplementations go wrong, and the number that shows it."""

import pytest
import torch

from fastalex import AlexNet
from fastalex.model import LocalResponseNorm


def first(model, kind):
    return next(i for i, m in enumerate(model.features) if isinstance(m, kind))


def layer_outputs(model, x, change=None):
    """Every named layer's output; `change` = (layer, function) is applied to that layer's input."""
    outputs, handles = {}, []
    for name, module in model.named_layers():
        if change and name == change[0]:
            handles.append(
                module.register_forward_pre_hook(lambda _m, args: (change[1](args[0].clone()),))
            )
        handles.append(
            module.register_forward_hook(lambda _m, _i, y, name=name: outputs.update({name: y}))
        )
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return outputs


def zero_tower_b(x):
    x[:, x.shape[1] // 2 :] = 0
    return x


def towers_that_changed(before, after):
    a, b = (before != after).chunk(2, dim=1)
    return bool(a.any()), bool(b.any())


@pytest.mark.parametrize(
    ("variant", "denominator"),
    [
        ("paper", (2 + 5) ** 0.75),
        ("single", (2 + 5) ** 0.75),
        ("original", (2 + 1) ** 0.75),
        ("caffe", (1 + 1) ** 0.75),
        ("caffenet", (1 + 1) ** 0.75),
    ],
)
def test_trap_1_alpha_and_k(variant, denominator, whole):
    norm = next(m for m in whole(variant).features if isinstance(m, LocalResponseNorm))
    y = norm(torch.full((1, 96, 2, 2), 100.0))
    assert y[0, 10].flatten().tolist() == pytest.approx([100 / denominator] * 4, rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "reached"),
    [
        ("paper", [45, 46, 47]),
        ("original", [45, 46, 47]),
        ("caffe", [45, 46, 47, 48, 49]),
        ("caffenet", [45, 46, 47, 48, 49]),
        ("single", [45, 46, 47, 48, 49]),
    ],
)
def test_trap_2_the_towers_edge(variant, reached, whole):
    norm = next(m for m in whole(variant).features if isinstance(m, LocalResponseNorm))
    x = 50 + torch.rand(1, 96, 3, 3)
    changed = x.clone()
    changed[:, 47] += 30
    differs = (norm(x) != norm(changed)).any(-1).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == reached


@pytest.mark.parametrize("variant", ["paper", "original", "caffe", "caffenet", "batchnorm"])
def test_trap_3_connectivity_of_two_towers(variant, narrow):
    model = narrow(variant)
    x = 60 * torch.randn(1, 3, 227, 227)
    before = layer_outputs(model, x)

    after = layer_outputs(model, x, ("conv2", zero_tower_b))  # pool1 of tower B
    assert towers_that_changed(before["conv2"], after["conv2"]) == (False, True)
    assert towers_that_changed(before["conv3"], after["conv3"]) == (True, True)

    after = layer_outputs(model, x, ("conv4", zero_tower_b))  # conv3 of tower B
    assert towers_that_changed(before["conv4"], after["conv4"]) == (False, True)
    assert towers_that_changed(before["conv5"], after["conv5"]) == (False, True)
    assert towers_that_changed(before["fc6"], after["fc6"]) == (True, True)


@pytest.mark.parametrize("variant", ["single", "torchvision"])
def test_trap_3_one_tower_is_fully_connected(variant, narrow):
    model = narrow(variant)
    x = 60 * torch.randn(1, 3, 224, 224)
    before = layer_outputs(model, x)
    after = layer_outputs(model, x, ("conv2", zero_tower_b))
    assert towers_that_changed(before["conv2"], after["conv2"]) == (True, True)
    after = layer_outputs(model, x, ("conv4", zero_tower_b))
    assert towers_that_changed(before["conv4"], after["conv4"]) == (True, True)


@pytest.mark.parametrize("variant", ["paper", "original", "single", "batchnorm"])
def test_trap_4_224_is_padded_on_the_right_and_bottom_only(variant, narrow):
    model = narrow(variant)
    conv1 = dict(model.named_layers())["conv1"]
    x = torch.zeros(1, 3, 224, 224)
    x[0, 0, 0, 0] = 1
    bias = 0 if conv1.bias is None else conv1.bias[:, None, None]
    y = conv1(x)[0] - bias
    torch.testing.assert_close(y[:, 0, 0], conv1.weight[:, 0, 0, 0])
    y[:, 0, 0] = 0
    assert (y == 0).all()

    x = torch.zeros(1, 3, 224, 224)
    x[0, 0, 223, 223] = 1  # the last window starts at 216 and sees it at 7
    y = conv1(x)[0] - bias
    torch.testing.assert_close(y[:, 54, 54], conv1.weight[:, 0, 7, 7])


def test_trap_4_torchvision_pads_every_side_and_caffe_none(narrow):
    impulse = torch.zeros(1, 3, 227, 227)
    impulse[0, 0, 0, 0] = 1
    for variant, at in (("torchvision", 2), ("caffe", 0)):
        conv1 = dict(narrow(variant).named_layers())["conv1"]
        torch.testing.assert_close(
            conv1(impulse)[0, :, 0, 0] - conv1.bias, conv1.weight[:, 0, at, at]
        )


def test_original_applies_relu_after_norm_and_pool():
    """Block 1's ReLU last: the norm sees negative responses, too."""
    model = AlexNet(variant="original", width=1 / 16)
    seen = []
    model.features[first(model, LocalResponseNorm)].register_forward_hook(
        lambda _m, args, _y: seen.append(args[0].min().item())
    )
    with torch.no_grad():
        model(60 * torch.randn(1, 3, 224, 224))
    assert seen[0] < 0
