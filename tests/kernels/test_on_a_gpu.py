"""What only a GPU can show: CUDA graphs, tensors of over 2^31 elements, streams, real times."""

import pytest
import torch
import torch.nn.functional as F

from fastalex import AlexNet, kernels
from fastalex.kernels import _choice, _choice_file
from fastalex.train import MomentumSGD

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OPS = {
    "local_response_norm": lambda x: kernels.local_response_norm(x, 5, 0.1, groups=2, relu=True),
    "max_pool2d": lambda x: kernels.max_pool2d(x, 3, 2, relu=True),
    "local_response_norm_max_pool2d": lambda x: kernels.local_response_norm_max_pool2d(
        x, 5, 0.1, 0.75, 1.0, 3, 2, groups=2, relu=True
    ),
    "relu_dropout": lambda x: kernels.relu_dropout(x, 0.5),
    "keyed_dropout": lambda x: kernels.keyed_dropout(x, torch.ones(2, device=x.device).long()),
}


def both_ways(op, x, dy=None):
    """Output and gradient; `dy` of ones unless given."""
    leaf = x.detach().requires_grad_()
    y = op(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y) if dy is None else dy)[0]


@pytest.fixture
def any_algorithm():
    """The layers that torch computes have no deterministic algorithm each, and would warn."""
    torch.use_deterministic_algorithms(False)


IMAGE = 99


def three_steps(device, launch):
    """Losses and weights; `launch(step)` gives the function that is then called for each step."""
    torch.manual_seed(0)
    model = AlexNet(10, width=0.05).to(device)
    images = torch.randn(8, 3, IMAGE, IMAGE, device=device)
    labels = torch.arange(8, device=device)
    rate = torch.tensor(0.01, device=device)
    optimizer = MomentumSGD(model.parameters(), lr=rate)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = launch(step)
    torch.manual_seed(1)
    losses = []
    for lr in (0.01, 0.03, 0.02):
        rate.fill_(lr)
        losses.append(run().clone())
    return torch.stack(losses), [p.detach().clone() for p in model.parameters()]


def warmed(step):
    """On a stream of its own, as a capture wants it: kernels are compiled and choices made here."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    return step


def captured(step):
    warmed(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay():
        graph.replay()
        return loss

    return replay


@pytest.mark.usefixtures("any_algorithm", "exact_float32")
@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_a_training_step_as_a_cuda_graph(mode, device):
    """Its dropout draws new masks at each replay, and its rate is read anew."""
    with kernels.use(mode):
        losses, weights = three_steps(device, warmed)
        graph_losses, graph_weights = three_steps(device, captured)
    assert losses.isfinite().all()
    torch.testing.assert_close(graph_losses, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(graph_weights, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "triton", "aten"])
def test_the_key_of_a_cuda_graph_is_read_at_each_replay(mode, device):
    """Nothing waits for it either, or it could not be captured."""
    key = torch.tensor([2**40 + 3, 0], device=device)
    x = torch.randn(30, 4100, device=device, dtype=torch.bfloat16)
    place = {"relu": True, "layer": 1, "first_row": 6, "first_unit": 4096}

    def step():
        return torch.stack(both_ways(lambda x: kernels.keyed_dropout(x, key, **place), x))

    with kernels.use(mode):
        replay = captured(step)
        found = []
        for number in (0, 1, 2**32 - 1):
            key[1] = number
            found.append(replay().clone())
            assert torch.equal(found[-1], step())
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keyed_dropout_compiled_draws_what_a_cpu_draws(dtype, device):
    """By inductor, also for a layer and a first row of 1, which it may turn into constants."""
    x, key = torch.randn(9, 1100), torch.tensor([-5, 0])

    def run(where, dropout):
        op = lambda x: dropout(x, key.to(where), 0.3, relu=True, layer=1, first_row=1)  # noqa: E731
        return [found.cpu() for found in both_ways(op, x.to(where, dtype))]

    torch.compiler.reset()
    compiled = torch.compile(kernels.keyed_dropout, fullgraph=True)
    for number in range(3):
        key[1] = number
        for got, expected in zip(
            run(device, compiled), run("cpu", kernels.keyed_dropout), strict=True
        ):
            assert torch.equal(got, expected)


HUGE = 2049, 64, 128, 128  # the last image begins at element 2^31


@pytest.fixture
def huge(device):
    """Normal bfloat16 numbers, channels last."""
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of the GPU's memory")
    x = torch.empty(HUGE, device=device, dtype=torch.bfloat16, memory_format=torch.channels_last)
    yield x.normal_()
    del x
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("name", [name for name in OPS if "dropout" not in name])
def test_the_last_of_many_images_as_if_it_were_alone(name, huge):
    last = huge[-1:].clone()
    y, dx = both_ways(OPS[name], huge)
    alone = both_ways(OPS[name], last)
    assert alone[0].count_nonzero() > alone[0].numel() / 3
    assert torch.equal(y[-1:], alone[0])
    assert torch.equal(dx[-1:], alone[1])


@pytest.mark.usefixtures("triton")
def test_dropout_of_many_images(huge):
    """A mask depends on the place in memory: the last image's is another than the first's."""
    y, dx = both_ways(OPS["relu_dropout"], huge)
    x, y, dx = (t[-1] for t in (huge, y, dx))
    kept = y > 0
    assert abs(kept.sum() / (x > 0).sum() - 0.5) < 0.01
    assert torch.equal(y, torch.where(kept, 2 * x, 0))
    assert torch.equal(dx, 2 * kept.to(dx.dtype))
    again, _ = both_ways(OPS["relu_dropout"], huge[-1:])
    assert not torch.equal(again[0] > 0, kept)


@pytest.mark.usefixtures("triton")
def test_keyed_dropout_of_many_images(huge):
    """The last image by itself draws its own mask, of the units of its layout's memory or not."""
    key = torch.tensor([7, 1], device=huge.device)
    with torch.no_grad():
        y = kernels.keyed_dropout(huge, key)
        assert torch.equal(y[-1:], kernels.keyed_dropout(huge[-1:], key, first_row=len(huge) - 1))
    assert abs((y[-1] != 0).float().mean() - 0.5) < 0.01


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("name", OPS)
def test_on_a_second_stream(name, device):
    """Whoever launches on another stream reads the operands long before they are written."""
    x = torch.randn(4, 32, 15, 15, device=device, dtype=torch.bfloat16)
    torch.manual_seed(1)
    expected = both_ways(OPS[name], 2 * x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles
        torch.manual_seed(1)
        got = both_ways(OPS[name], 2 * x)
    stream.synchronize()
    assert all(map(torch.equal, got, expected))


def _as_a_new_process(monkeypatch):
    for module, name in ((_choice, "_made"), (_choice, "_winners"), (_choice_file, "_read")):
        monkeypatch.setattr(module, name, {})


def test_auto_chooses_remembers_and_reports(device, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTALEX_CACHE", str(tmp_path))
    _as_a_new_process(monkeypatch)
    x = torch.randn(32, 96, 27, 27, device=device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    both_ways(OPS["local_response_norm"], x)
    made = kernels.report()
    assert [choice.direction for choice in made] == ["forward", "backward"]
    for choice in made:
        assert choice.op == "local_response_norm"
        assert choice.device == torch.cuda.get_device_name(device)
        assert choice.times.keys() == {"aten", "triton"}
        assert all(time > 0 for time in choice.times.values())
        assert choice.winner in str(made)

    def bench(*_, **__):
        raise AssertionError("timed again")

    monkeypatch.setattr("triton.testing.do_bench", bench)
    _as_a_new_process(monkeypatch)
    both_ways(OPS["local_response_norm"], x)
    assert kernels.report() == made
