"""relu_dropout: torch's two ops to the bit where ATen computes, in law where the kernel does."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import keyed_dropout, use
from fastalex.kernels._dropout import Dropout, _dropout, _dropout_backward, _factors
from fastalex.kernels.relu_dropout import PLACE, relu_dropout
from fastalex.model import UnscaledDropout

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(2, 4096), (3, 1367), (1, 1), (4,), (), (2, 5, 7, 3)]
numpys_remarks = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
"""Of Triton's interpreter, about infinities."""
SEED, STEP = 0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321


def key_on(device, seed=SEED):
    return torch.tensor([seed, STEP], device=device)


def by_kernel(x, p=0.5, *, inverted=True, seed=SEED):
    return Dropout.apply(x, key_on(x.device, seed), p, inverted, True, PLACE, "triton")


def mask(shape, p, device, seed=SEED):
    """What survives, as the kernel has it."""
    return by_kernel(torch.ones(shape, device=device), p, inverted=False, seed=seed) == 1


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_gradient(shape, dtype, inverted, device):
    """Products with the mask in float32, rounded once: within one unit, and zero where it is."""
    p, near = 0.3, {"rtol": torch.finfo(dtype).eps, "atol": 0}
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    dy = torch.randn(shape, device=device).to(dtype)
    y = by_kernel(x, p, inverted=inverted)
    (dx,) = torch.autograd.grad(y, x, dy)
    scale = torch.tensor(1 / (1 - p) if inverted else 1.0, dtype=torch.float32, device=device)
    factors = mask(shape, p, device) * scale
    assert y.dtype == dx.dtype == dtype
    torch.testing.assert_close(y, (F.relu(x.float()) * factors).to(dtype), **near)
    expected = torch.where(x <= 0, 0, dy.float() * factors).to(dtype)
    torch.testing.assert_close(dx, expected, **near)


@pytest.mark.parametrize("seed", [0, 1, SEED, 2**63 - 2])
@pytest.mark.parametrize("p", [0.5, 0.1, 0.999])
def test_the_mask_is_philoxs(p, seed, device):
    """Against torch's integers; a program ends within the tensor and the tensor within one."""
    x, key = torch.ones(9001, device=device), key_on(device, seed)
    expected = _factors(x, key, p, True, PLACE)
    assert torch.equal(by_kernel(x, p, seed=seed), expected)
    for inverted in (True, False):
        ops = [_dropout(x, key, p, inverted, True, PLACE, m) for m in ("aten", "triton")]
        assert torch.equal(*ops)


def test_it_is_keyed_dropout_of_rows_of_1024(device):
    x = torch.randn(3, 8, 13, 11, device=device).to(memory_format=torch.channels_last)
    memory = x.permute(0, 2, 3, 1).flatten()
    rows = F.pad(memory, (0, -len(memory) % 1024)).view(-1, 1024)
    expected = keyed_dropout(rows, key_on(device), relu=True).flatten()[: len(memory)]
    assert torch.equal(by_kernel(x).permute(0, 2, 3, 1).flatten(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 9 GB of GPU memory")
def test_beyond_2_to_the_31_elements():
    x = torch.ones(2**31 + 5000, dtype=torch.bfloat16, device="cuda")
    y = by_kernel(x)
    tail, head = y[-5000:], y[:5000]
    assert 0.4 < (tail > 0).float().mean() < 0.6
    assert not torch.equal(tail, head)
    dx = _dropout_backward(x, y, key_on(x.device), 0.5, True, PLACE, "triton")
    assert torch.equal(dx[-5000:], tail)


def test_statistics(device):
    """Mean, and no correlation with the next element, row, program or seed: six sigma."""
    n, p = 2**17, 0.3
    kept = mask((n,), p, device).double() - (1 - p)
    sigma = math.sqrt(p * (1 - p))
    assert abs(kept.mean()) < 6 * sigma / math.sqrt(n)
    for shift in (1, 2, 256, 1024, 2048, 4096):
        correlation = (kept[shift:] * kept[:-shift]).mean() / sigma**2
        assert abs(correlation) < 6 / math.sqrt(n - shift), f"shift {shift}"
    for other in (SEED + 1, SEED + 2**32):
        theirs = mask((n,), p, device, other).double() - (1 - p)
        assert abs((kept * theirs).mean() / sigma**2) < 6 / math.sqrt(n), f"seed {other}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(laid_out, dtype, device):
    """Output as relu's; the gradient's mask is the output's, also for a gradient laid otherwise."""
    x = laid_out(torch.rand(2, 8, 6, 20).to(device, dtype) + 0.5).detach().requires_grad_()
    y = by_kernel(x, inverted=False)
    assert y.stride() == F.relu(x).stride()
    kept = y != 0
    assert torch.equal(y, x * kept)
    assert 0.4 < kept.float().mean() < 0.6
    for dy in (torch.ones_like(x), torch.ones(x.shape, dtype=dtype, device=device)):
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        assert torch.equal(dx, kept.to(dtype))
        assert dx.stride() == y.stride()


def test_same_seed_same_bits(device):
    x = torch.randn(3, 1500, device=device, requires_grad=True)

    def run():
        torch.manual_seed(3)
        with use("triton"):
            y = relu_dropout(x)
        return y, *torch.autograd.grad(y.sum(), x)

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)
    with use("triton"):
        assert not torch.equal(relu_dropout(x), relu_dropout(x))


@numpys_remarks
def test_nan_and_infinity_as_torch(device):
    """The same places hold NaN as in relu, dropout with this mask by torch; gradients alike."""
    x = torch.tensor([math.nan, math.inf, -math.inf, -1.0, 2.0], device=device).repeat(40)
    kept = mask(x.shape, 0.5, device)
    x.requires_grad_()
    expected = F.relu(x) * (kept * 2.0)
    got = by_kernel(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    dy = torch.randn_like(x)
    (theirs,) = torch.autograd.grad(expected, x, dy)
    (ours,) = torch.autograd.grad(got, x, dy, retain_graph=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    (ours,) = torch.autograd.grad(got, x, torch.full_like(x, math.nan))
    assert torch.equal(ours.isnan(), kept & ~(x <= 0))
    assert (ours[~kept] == 0).all()


@numpys_remarks
def test_float16_overflows_to_infinity(device):
    x = torch.full((64,), 60000.0, dtype=torch.float16, device=device)
    assert set(by_kernel(x).tolist()) == {0.0, math.inf}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["auto", "aten"])
def test_on_a_cpu_bit_for_bit_the_unfused(mode, dtype, layout):
    x = torch.randn(2, 8, 5, 6).to(dtype).to(memory_format=layout)
    unscaled = UnscaledDropout(0.4)
    peers = [
        (True, lambda: F.dropout(F.relu(x), 0.4)),
        (False, lambda: unscaled(F.relu(x))),
    ]
    for inverted, peer in peers:
        torch.manual_seed(5)
        expected = peer()
        torch.manual_seed(5)
        with use(mode):
            got = relu_dropout(x, 0.4, inverted=inverted)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_evaluation_and_the_two_ends(mode, device):
    x = torch.randn(3, 50, device=device)
    zeros = torch.zeros_like(x)
    with use(mode):
        assert torch.equal(relu_dropout(x, training=False), F.relu(x))
        assert torch.equal(relu_dropout(x, 0.25, False, inverted=False), F.relu(x) * 0.75)
        for inverted in (True, False):
            assert torch.equal(relu_dropout(x, 0.0, inverted=inverted), F.relu(x))
            assert torch.equal(relu_dropout(x, 1.0, inverted=inverted), zeros)
        assert torch.equal(relu_dropout(x, 0.0, False, inverted=False), F.relu(x))
        assert relu_dropout(x[:0]).shape == (0, 50)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("training", [True, False])
def test_p_outside(p, training):
    with pytest.raises(ValueError, match=f"`p` must be between 0 and 1, got {p}"):
        relu_dropout(torch.ones(3), p, training)


def test_gradcheck():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def op(x):
        torch.manual_seed(1)
        return relu_dropout(x, 0.3)

    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


def test_second_derivatives_are_refused_by_the_kernel(device):
    x = torch.randn(8, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(by_kernel(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="dropout_backward"):
        dx.sum().backward()


def test_opcheck(device):
    x, dy = (torch.randn(2, 3, 4, 5, device=device) for _ in range(2))
    x = x.to(memory_format=torch.channels_last)
    key, place = key_on(device), [7, 1, 2, 3]
    for relu in (True, False):
        arguments = (x if relu else x.contiguous(), key, 0.3, True, relu, place, "auto")
        torch.library.opcheck(_dropout, arguments)
        torch.library.opcheck(
            _dropout_backward, (dy, x if relu else None, key, 0.3, True, place, "auto")
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_whole_and_agrees(dtype, device):
    """The Function over its two ops, the mask a function of the key; then the public op."""
    x = torch.randn(3, 70, device=device).to(dtype)

    def run(function):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        return y, *torch.autograd.grad(y.square().sum(), leaf)

    def op(x):
        return Dropout.apply(x, key_on(device), 0.3, True, True, PLACE, "auto")

    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled), run(op), strict=True):
        assert torch.equal(got, expected)
    torch.compiler.reset()
    y, dx = run(torch.compile(relu_dropout, fullgraph=True, backend="aot_eager"))
    assert torch.equal(y.detach() > 0, dx > 0)
    assert not (y[x <= 0] > 0).any()
