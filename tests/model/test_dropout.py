"""KeyedDropout, and putting it in the place of a network's dropouts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastalex import AlexNet, FusedSequential, kernels
from fastalex.model import UnscaledDropout
from fastalex.model.dropout import KeyedDropout, key_dropouts


@pytest.fixture
def key(device):
    return torch.tensor([2**50 + 1, 3], device=device)


def test_in_training_it_is_the_op(key, mode, device):
    x = torch.randn(6, 5, 7, device=device)
    module = KeyedDropout(0.3, key, inverted=False, layer=2, first_rows=(9,), first_unit=11)
    place = {"inverted": False, "layer": 2, "first_row": 9, "first_unit": 11}
    with kernels.use(mode):
        assert torch.equal(module(x), kernels.keyed_dropout(x, key, 0.3, **place))
        expected = kernels.keyed_dropout(x, key, 0.3, relu=True, **place)
        assert torch.equal(module.after_relu(x), expected)


@pytest.mark.parametrize(("inverted", "scale"), [(True, 1), (False, 0.75)])
def test_in_evaluation_it_scales_or_not(inverted, scale, key, device):
    x = torch.randn(6, 5, device=device)
    module = KeyedDropout(0.25, key, inverted=inverted).eval()
    assert torch.equal(module(x), x * scale)
    assert torch.equal(module.after_relu(x), F.relu(x) * scale)


def test_runs_of_rows_are_slices_of_the_whole(key, mode, device):
    """As where ranks have gathered the same micro-batch of each."""
    x = torch.randn(12, 40, device=device, requires_grad=True)
    with kernels.use(mode):
        whole = KeyedDropout(0.5, key)(x)
        part = KeyedDropout(0.5, key, first_rows=(9, 2, 6), first_unit=8)
        places = [*range(9, 12), *range(2, 5), *range(6, 9)]
        got = part(x[places][:, 8:])
        assert torch.equal(got, whole[places][:, 8:])
        part.first_rows = (1,)
        assert torch.equal(part(x[1:5, 8:]), whole[1:5, 8:])
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert torch.equal(gradient[2:5, 8:] != 0, whole[2:5, 8:] != 0)
    assert not gradient[5].any()


def test_rows_that_are_not_so_many_runs(key, device):
    with pytest.raises(ValueError, match=r"^KeyedDropout: 5 rows are not .*`first_rows` \(=\(0, 8"):
        KeyedDropout(0.5, key, first_rows=(0, 8))(torch.ones(5, 4, device=device))


def test_a_shared_key_is_no_part_of_the_state(key, device):
    module = KeyedDropout(0.5, key)
    assert not module.state_dict()
    assert module.key is key
    x = torch.ones(50, 50, device=device)
    before = module(x)
    key[1] += 1
    assert not torch.equal(module(x), before)


@pytest.mark.parametrize("variant", ["paper", "torchvision"])
def test_a_networks_dropouts(variant, key, device, narrow, image):
    """Kind, probability, order, mode and names stay; both variants have two."""
    model = narrow(variant, dropout=0.4).train()
    for module in model.classifier:
        if isinstance(module, nn.Dropout):
            module.eval()  # the first only
            break
    plain = copy.deepcopy(model)
    assert key_dropouts(model, key) is model
    assert model.state_dict().keys() == plain.state_dict().keys()
    names = [name for name, module in plain.named_modules() if isinstance(module, nn.Dropout)]
    keyed = {n: m for n, m in model.named_modules() if isinstance(m, KeyedDropout)}
    assert list(keyed) == names
    assert [m.layer for m in keyed.values()] == [0, 1]
    assert [m.training for m in keyed.values()] == [False, True]
    assert {m.inverted for m in keyed.values()} == {variant == "torchvision"}
    assert all(m.p == 0.4 and m.key is key for m in keyed.values())
    x = image(model.variant.input.size).to(device)
    model, plain = model.to(device).eval(), plain.to(device).eval()
    torch.testing.assert_close(model(x), plain(x))


def test_dropouts_of_nested_and_shared_modules(key):
    class Own(nn.Dropout):
        pass

    shared, own = nn.Dropout(0.1), Own()
    model = nn.Sequential(
        nn.Sequential(shared, UnscaledDropout(0.2)), own, shared, nn.ModuleDict({"a": nn.Dropout()})
    )
    key_dropouts(model, key)
    assert model[0][0] is model[2]
    assert model[1] is own
    places = [(m.p, m.inverted, m.layer) for m in model.modules() if isinstance(m, KeyedDropout)]
    assert places == [(0.1, True, 0), (0.2, False, 1), (0.5, True, 2)]


def test_behind_a_relu_it_is_one_op(key, mode, device, runs_triton, monkeypatch):
    calls = []
    op = kernels.keyed_dropout

    def spy(*args, relu, **kwargs):
        calls.append(relu)
        return op(*args, relu=relu, **kwargs)

    monkeypatch.setattr(kernels, "keyed_dropout", spy)
    plain = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Dropout(), nn.Linear(30, 30))
    key_dropouts(plain.to(device), key)
    fused, x = FusedSequential(*plain), torch.randn(8, 20, device=device)
    with kernels.use(mode):
        torch.testing.assert_close(fused(x), plain(x))
        torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
    one = runs_triton and (mode == "triton" or (mode == "auto" and device.type == "cuda"))
    assert calls == [one, False]


def test_a_compiled_network_follows_its_key(key, device):
    model = AlexNet(4, variant="original", width=0.03).to(device).train()
    classifier = key_dropouts(model, key).classifier
    x = torch.randn(4, classifier[0].in_features, device=device)
    torch.compiler.reset()
    compiled = torch.compile(classifier, fullgraph=True, backend="aot_eager")
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(2):
            key[1] += 1
            torch.testing.assert_close(compiled(x), classifier(x))
