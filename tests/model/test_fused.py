"""FusedSequential and accelerate, on other people's shapes of network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastalex
from fastalex import FusedSequential, accelerate, kernels
from fastalex.kernels._launch import INTERPRETED
from fastalex.model import LocalResponseNorm, MaxPool2d, UnscaledDropout, WholeWindowConv2d

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"


def googlenet_stem():
    """Szegedy et al. 2014, table 1, narrowed: pool, norm; then norm, pool; padded pools."""
    return [
        nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1), nn.LocalResponseNorm(5),
        nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, padding=1),
    ]  # fmt: skip


def zfnet():
    """Zeiler and Fergus 2013, narrowed: strides of 2, a contrast norm of size 5 after each pool."""
    return [
        nn.Conv2d(3, 8, 7, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.MaxPool2d(3, 2),
    ]  # fmt: skip


def caffenet():
    """Pool, then norm; two groups."""
    return [
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5),
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.LocalResponseNorm(5),
    ]  # fmt: skip


def batchnorm():
    return [
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]


def alexnet():
    return [
        WholeWindowConv2d(3, 8, 5, stride=4), nn.ReLU(), LocalResponseNorm(5, groups=2),
        nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.ReLU(),
        nn.LocalResponseNorm(5),
    ]  # fmt: skip


FUSED = {
    googlenet_stem: ["conv2d_relu", "max_pool2d", "local_response_norm", "conv2d_relu",
                     "conv2d_relu", "local_response_norm", "max_pool2d"],
    zfnet: ["conv2d_relu", "max_pool2d", "local_response_norm", "conv2d_relu",
            "local_response_norm_max_pool2d"],
    caffenet: ["conv2d_relu", "max_pool2d", "local_response_norm"] * 2,
    batchnorm: ["max_pool2d"],
    alexnet: ["conv2d_relu", "local_response_norm_max_pool2d", "conv2d_relu",
              "local_response_norm"],
}  # fmt: skip
NETWORKS = pytest.mark.parametrize("network", FUSED, ids=lambda f: f.__name__)
MODES = pytest.mark.parametrize(
    "mode",
    [
        "auto",
        "aten",
        pytest.param("triton", marks=pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="")),
    ],
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def image(side=51):
    return torch.randn(2, 3, side, side, device=DEVICE)


def gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape))
    found = [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    return found


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


@MODES
@NETWORKS
def test_same_answer_and_gradients(network, mode):
    plain = nn.Sequential(*network()).to(DEVICE)
    fused = FusedSequential(*copy.deepcopy(plain))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    x = image()
    expected = gradients(plain, x)
    with kernels.use(mode):
        for got, wanted in zip(gradients(fused, x), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@NETWORKS
def test_what_is_fused_with_what(network, monkeypatch):
    model = FusedSequential(*network()).to(DEVICE)
    names = called(monkeypatch)
    with kernels.use("triton" if ON_GPU or INTERPRETED else "auto"):
        model(image())
    assert names == FUSED[network]


def test_the_relus_mask_moves_to_the_op_that_follows(monkeypatch):
    seen = []
    for name in ("conv2d_relu", "local_response_norm_max_pool2d"):
        op = getattr(kernels, name)

        def spy(*args, _op=op, **kwargs):
            seen.append({k: v for k, v in kwargs.items() if k in ("relu", "mask_gradient")})
            return _op(*args, **kwargs)

        monkeypatch.setattr(kernels, name, spy)
    model = FusedSequential(*alexnet()).to(DEVICE)
    if ON_GPU or INTERPRETED:
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
def test_a_watched_module_runs_by_itself(hook, where, monkeypatch):
    model = FusedSequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()).to(DEVICE)
    HOOKS[hook](model[where])
    names = called(monkeypatch)
    gradients(model, image(9))
    assert names == ["conv2d_relu"]


def test_a_hook_sees_what_it_would_in_a_plain_sequential():
    plain = nn.Sequential(*alexnet()).to(DEVICE)
    fused = FusedSequential(*plain)
    x = image()
    for at in range(len(plain)):
        seen = []
        handle = plain[at].register_forward_hook(lambda m, i, o, s=seen: s.append((i[0], o)))
        plain(x), fused(x)
        handle.remove()
        torch.testing.assert_close(seen[0], seen[1])


def test_a_global_hook_sees_every_module():
    seen = []
    model = FusedSequential(*alexnet()).to(DEVICE)
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
@MODES
def test_modules_that_no_op_stands_for_keep_their_meaning(modules, mode):
    x = image(9)
    expected = nn.Sequential(*modules).to(DEVICE)(x)
    with kernels.use(mode):
        torch.testing.assert_close(FusedSequential(*modules)(x), expected)


def test_return_indices():
    values, indices = FusedSequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))(image(8))
    assert values.shape == indices.shape


@MODES
def test_an_in_place_relu_still_writes_where_somebody_looks(mode):
    with kernels.use(mode):
        x = image(8)
        FusedSequential(nn.ReLU(inplace=True), nn.MaxPool2d(2))(x)
        assert x.min() == 0
        seen = []
        model = FusedSequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        model.to(DEVICE)[0].register_forward_hook(lambda m, i, o: seen.append(o))
        model(image(8))
        assert seen[0].min() == 0


@pytest.mark.parametrize("dropout", [nn.Dropout, UnscaledDropout])
@MODES
def test_relu_and_dropout(dropout, mode):
    plain = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), dropout(0.25)).to(DEVICE)
    fused = FusedSequential(*plain)
    x = torch.randn(64, 64, device=DEVICE)
    with kernels.use(mode):
        torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
        y = fused.train()(x)
    relu = F.relu(plain[0](x))
    kept = y != 0
    assert abs(kept.sum() / (relu > 0).sum() - 0.75) < 0.03
    scale = 1 / 0.75 if dropout is nn.Dropout else 1
    torch.testing.assert_close(y[kept], scale * relu[kept])


def test_slices_and_replacements():
    model = FusedSequential(*alexnet()).to(DEVICE)
    assert type(model[:4]) is FusedSequential
    x = image()
    torch.testing.assert_close(model[4:](model[:4](x)), model(x))
    model[5] = nn.Tanh()
    torch.testing.assert_close(model(x), nn.Sequential(*model).to(DEVICE)(x))


def test_empty():
    x = image(3)
    assert FusedSequential()(x) is x


def test_fx_sees_every_module():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    traced = torch.fx.symbolic_trace(FusedSequential(*plain))
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert calls == ["0", "1", "2"]


def test_alexnet_is_fused():
    model = fastalex.AlexNet(width=0.02)
    assert type(model.features) is type(model.classifier) is FusedSequential


class Inception(nn.Module):
    """Somebody's own code between Sequentials, with layers that stand alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*googlenet_stem())
        self.norm = nn.LocalResponseNorm(5, 1e-3)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.branch = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU()) for _ in "ab"])

    def forward(self, x):
        x = self.norm(self.stem(x))
        return torch.cat([branch(self.pool(x)) for branch in self.branch], 1)


@MODES
def test_accelerate(mode):
    model = Inception().to(DEVICE)
    x, keys, modules = image(), list(model.state_dict()), list(model.modules())
    expected = gradients(model, x)
    assert accelerate(model) is model
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert type(model.stem) is type(model.branch[1]) is FusedSequential
    assert type(model.norm) is LocalResponseNorm
    assert type(model.pool) is MaxPool2d
    with kernels.use(mode):
        for got, wanted in zip(gradients(model, x), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    accelerate(model)
    torch.testing.assert_close(model(x), expected[0], rtol=1e-4, atol=1e-4)


def test_accelerate_leaves_subclasses_alone():
    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    model = accelerate(nn.ModuleList([Own(nn.ReLU()), nn.Sequential(nn.ReLU())]))
    assert [type(m) for m in model] == [Own, FusedSequential]


def test_accelerate_wants_a_module():
    with pytest.raises(
        TypeError, match=r"`model` must be a torch.nn.Module, got <class 'function'>"
    ):
        accelerate(lambda x: x)


@NETWORKS
def test_compiles_whole(network):
    model = accelerate(nn.Sequential(*network())).to(DEVICE)
    x = image()
    expected = gradients(model, x)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(gradients(compiled, x), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", fastalex.model.VARIANTS)
def test_fx_traces_every_variant(variant):
    """As torchvision's create_feature_extractor does."""
    model = fastalex.AlexNet(4, variant=variant, width=0.02).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 99, 99)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("variant", ["paper", "original", "torchvision"])
def test_shapes_on_the_meta_device(variant):
    with torch.device("meta"):
        model = fastalex.AlexNet(4, variant=variant, width=0.02)
        assert model(torch.empty(2, 3, 99, 99)).shape == (2, 4)
