"""FusedSequential, on other people's shapes of network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastalex
from fastalex import FusedSequential, kernels
from fastalex.model import UnscaledDropout

FUSED = {  # which ops run each network
    "googlenet_stem": ["conv2d_relu", "max_pool2d", "local_response_norm", "conv2d_relu",
                       "conv2d_relu", "local_response_norm", "max_pool2d"],
    "zfnet": ["conv2d_relu", "max_pool2d", "local_response_norm", "conv2d_relu",
              "local_response_norm_max_pool2d"],
    "caffenet": ["conv2d_relu", "max_pool2d", "local_response_norm"] * 2,
    "batchnorm": ["max_pool2d"],
    "alexnet": ["conv2d_relu", "local_response_norm_max_pool2d", "conv2d_relu",
                "local_response_norm"],
}  # fmt: skip
ON_ALEXNET = pytest.mark.parametrize("network", ["alexnet"], indirect=True)


@pytest.fixture
def called(monkeypatch):
    """The list that the names of the ops go to as they are called."""

    names = []
    for name in ("conv2d_relu", "max_pool2d", "local_response_norm", "relu_dropout",
                 "local_response_norm_max_pool2d"):  # fmt: skip
        op = getattr(kernels, name)

        def spy(*args, _op=op, _name=name, **kwargs):
            names.append(_name)
            return _op(*args, **kwargs)

        monkeypatch.setattr(kernels, name, spy)
    return names


def test_same_answer_and_gradients(network, mode, device, image, gradients):
    plain = nn.Sequential(*network()).to(device)
    fused = FusedSequential(*copy.deepcopy(plain))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    x = image()
    expected = gradients(plain, x)
    with kernels.use(mode):
        for got, wanted in zip(gradients(fused, x), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_what_is_fused_with_what(network, device, image, called, runs_triton):
    model = FusedSequential(*network()).to(device)
    with kernels.use("triton" if runs_triton else "auto"):
        model(image())
    assert called == FUSED[network.__name__]


@ON_ALEXNET
def test_the_relus_mask_moves_to_the_op_that_follows(
    monkeypatch, device, image, network, runs_triton
):
    seen = []
    for name in ("conv2d_relu", "local_response_norm_max_pool2d"):
        op = getattr(kernels, name)

        def spy(*args, _op=op, **kwargs):
            seen.append({k: v for k, v in kwargs.items() if k in ("relu", "mask_gradient")})
            return _op(*args, **kwargs)

        monkeypatch.setattr(kernels, name, spy)
    model = FusedSequential(*network()).to(device)
    if runs_triton:
        with kernels.use("triton"):
            model(image())
        assert seen == [{"mask_gradient": False}, {"relu": True}, {"mask_gradient": True}]
    seen.clear()
    with kernels.use("aten"):
        model(image())
    assert seen == [{"mask_gradient": True}, {"relu": False}, {"mask_gradient": True}]


HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "pre-forward": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "pre-backward": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "patched forward": lambda m: setattr(m, "forward", m.forward),
}


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_watched_module_runs_by_itself(hook, where, device, image, gradients, called):
    model = FusedSequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()).to(device)
    HOOKS[hook](model[where])
    gradients(model, image(9))
    assert called == ["conv2d_relu"]


def test_a_hook_sees_what_it_would_in_a_plain_sequential(device, image, network):
    plain = nn.Sequential(*network()).to(device)
    fused = FusedSequential(*plain)
    x = image()
    for at in range(len(plain)):
        seen = []
        handle = plain[at].register_forward_hook(lambda m, i, o, s=seen: s.append((i[0], o)))
        plain(x), fused(x)
        handle.remove()
        torch.testing.assert_close(seen[0], seen[1])


def test_a_global_hook_sees_every_module(device, image, network):
    seen = []
    model = FusedSequential(*network()).to(device)
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(m))
    try:
        model(image())
    finally:
        handle.remove()
    assert seen == [*model, model]


class Doubled(nn.ReLU):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Conv2d(3, 4, 3), Doubled(), nn.MaxPool2d(2)],
        [nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()],
        [nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)],
        [nn.ReLU(), nn.MaxPool2d(2, dilation=2)],
        [nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)],
        [nn.LocalResponseNorm(4), nn.MaxPool2d(2)],
    ],
    ids=lambda modules: "-".join(type(m).__name__ for m in modules),
)
def test_modules_that_no_op_stands_for_keep_their_meaning(modules, mode, device, image):
    x = image(9)
    expected = nn.Sequential(*modules).to(device)(x)
    with kernels.use(mode):
        torch.testing.assert_close(FusedSequential(*modules)(x), expected)


def test_return_indices(image):
    values, indices = FusedSequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))(image(8))
    assert values.shape == indices.shape


def test_an_in_place_relu_still_writes_where_somebody_looks(mode, device, image):
    with kernels.use(mode):
        x = image(8)
        FusedSequential(nn.ReLU(inplace=True), nn.MaxPool2d(2))(x)
        assert x.min() == 0
        seen = []
        model = FusedSequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        model.to(device)[0].register_forward_hook(lambda m, i, o: seen.append(o))
        model(image(8))
        assert seen[0].min() == 0


@pytest.mark.parametrize("dropout", [nn.Dropout, UnscaledDropout])
def test_relu_and_dropout(dropout, mode, device):
    plain = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), dropout(0.25)).to(device)
    fused = FusedSequential(*plain)
    x = torch.randn(64, 64, device=device)
    with kernels.use(mode):
        torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
        y = fused.train()(x)
    relu = F.relu(plain[0](x))
    kept = y != 0
    assert abs(kept.sum() / (relu > 0).sum() - 0.75) < 0.03
    scale = 1 / 0.75 if dropout is nn.Dropout else 1
    torch.testing.assert_close(y[kept], scale * relu[kept])


@ON_ALEXNET
def test_slices_and_replacements(device, image, network):
    model = FusedSequential(*network()).to(device)
    assert type(model[:4]) is FusedSequential
    x = image()
    torch.testing.assert_close(model[4:](model[:4](x)), model(x))
    model[5] = nn.Tanh()
    torch.testing.assert_close(model(x), nn.Sequential(*model).to(device)(x))


def test_empty(image):
    x = image(3)
    assert FusedSequential()(x) is x


def test_alexnet_is_fused():
    model = fastalex.AlexNet(width=0.02)
    assert type(model.features) is type(model.classifier) is FusedSequential
