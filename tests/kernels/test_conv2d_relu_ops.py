"""conv2d_relu among torch's systems: compiler, autocast, FLOP counter, TF32, the choice."""

import contextvars
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastalex import kernels
from fastalex.kernels import _conv2d_ops, _conv2d_passes, conv2d_relu
from fastalex.kernels._conv2d_descriptors import _provide_scratch

PUBLIC = sys.modules["fastalex.kernels.conv2d_relu"]
ARGUMENTS = ([1, 1], [1, 1], [1, 1], 2)
OPTIONS = {"padding": 1, "groups": 2}
SHAPES = ((2, 8, 5, 4), (6, 4, 3, 3), (6,))

pytestmark = pytest.mark.usefixtures("exact_float32")


def leaves(device, dtype=torch.float32):
    return [torch.randn(s, device=device).to(dtype).requires_grad_() for s in SHAPES]


@pytest.fixture
def through_the_ops(device, monkeypatch):
    """On a CPU, too, the public op takes the way of its triton_ops, which compute with ATen."""
    if device.type == "cpu":
        monkeypatch.setattr(
            PUBLIC, "route", lambda op, input, covered: "auto" if covered else "aten"
        )
    else:
        with kernels.use("triton"):
            yield
        return
    yield


@pytest.fixture
def mode(device):
    return "triton" if device.type == "cuda" else "auto"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(layout, device, mode):
    x, w, b = leaves(device)
    x, w = x.detach().to(memory_format=layout), w.detach().to(memory_format=layout)
    b = b.detach()
    y = torch.ops.fastalex.conv2d_relu(x, w, b, *ARGUMENTS, mode)
    dy = torch.randn_like(y)
    forward = torch.ops.fastalex.conv2d_relu.default
    for bias in (b, None):
        torch.library.opcheck(forward, (x, w, bias, *ARGUMENTS, mode))
    backward = torch.ops.fastalex.conv2d_relu_backward.default
    for output, mask in ((y, [True, True, True]), (None, [False, True, False])):
        torch.library.opcheck(backward, (dy, output, x, w, *ARGUMENTS, mask, mode))


@pytest.mark.parametrize("mask_gradient", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_whole_and_agrees(dtype, layout, mask_gradient, device, through_the_ops):
    """bfloat16 under autocast as well: a cast that casts nothing cost torch 2.11 the gradients."""
    operands = leaves(device, dtype)
    operands[0] = operands[0].detach().to(memory_format=layout).requires_grad_()

    def op(*operands):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return conv2d_relu(*operands, **OPTIONS, mask_gradient=mask_gradient)

    def run(function):
        y = function(*operands)
        return y, *torch.autograd.grad(y.square().sum(), operands)

    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled), run(op), strict=True):
        assert got.stride() == expected.stride()
        assert expected.any()
        torch.testing.assert_close(got, expected)


def test_autocast_casts_every_operand(device, implementation):
    """float16 in the interpreter too, whose bfloat16 products are wrong."""
    operands = leaves(device)
    with torch.autocast(device.type, dtype=torch.float16):
        y = conv2d_relu(*operands, **OPTIONS)
        double = conv2d_relu(*[o.double() for o in operands], **OPTIONS)
    assert (y.dtype, double.dtype) == (torch.float16, torch.float64)
    gradients = torch.autograd.grad(y.sum(), operands)
    expected = F.relu(F.conv2d(*operands, 1, 1, 1, 2))
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
    for got, exact in zip(gradients, torch.autograd.grad(expected.sum(), operands), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, exact, rtol=5e-2, atol=5e-2)


def test_flops(device, mode):
    """2 * 2 images * 20 pixels * 6 * 4 * 9 weights, forward and for each of two gradients."""
    x, w, b = (t.detach() for t in leaves(device))
    once = 2 * 2 * 20 * 6 * 4 * 9
    with FlopCounterMode(display=False) as counter:
        y = torch.ops.fastalex.conv2d_relu(x, w, b, *ARGUMENTS, mode)
    assert counter.get_total_flops() == once
    for mask, times in (
        ([True, True, True], 2),
        ([False, True, False], 1),
        ([True, False, True], 1),
    ):
        with FlopCounterMode(display=False) as counter:
            torch.ops.fastalex.conv2d_relu_backward(y, y, x, w, *ARGUMENTS, mask, mode)
        assert counter.get_total_flops() == times * once


def test_float32_follows_torchs_tf32_switch(device, monkeypatch, triton):
    used = []
    for name in ("convolve", "weight_gradient_parts"):
        real = getattr(_conv2d_passes, name)

        def spy(*args, real=real):
            used.extend(a for a in args if a in ("tf32", "ieee"))
            return real(*args)

        monkeypatch.setattr(_conv2d_passes, name, spy)
    operands = leaves(device)
    for setting in ("ieee", "tf32"):
        torch.backends.cudnn.conv.fp32_precision = setting
        torch.autograd.grad(conv2d_relu(*operands, **OPTIONS).sum(), operands)
        assert used == [setting] * 3
        used.clear()


def test_an_unmasked_gradient_is_the_callers_promise(device, triton):
    """What comes back is taken as it is, and y is neither read nor kept."""
    x, w, b = leaves(device)
    y = conv2d_relu(x, w, b, **OPTIONS, mask_gradient=False)
    kept = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), w.data_ptr()]
    linear = F.conv2d(x, w, b, 1, 1, 1, 2)
    dy = torch.randn_like(y)
    got, expected = (torch.autograd.grad(out, (x, w, b), dy) for out in (y, linear))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["aten", "triton"], indirect=True)
def test_with_the_promise_kept_nothing_changes(device, implementation):
    operands = leaves(device)
    results = []
    for mask_gradient in (True, False):
        y = conv2d_relu(*operands, **OPTIONS, mask_gradient=mask_gradient)
        dy = torch.where(y > 0, 1.5, 0.0)
        results.append(torch.autograd.grad(y, operands, dy))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_descriptors_get_scratch_memory_unless_the_user_provides_it():
    """Triton keeps the allocator by context, and a new thread, autograd's for one, has none."""
    triton = pytest.importorskip("triton")
    from triton.runtime._allocation import _allocator

    def users(size, alignment, stream):
        raise AssertionError

    def in_a_context_of_its_own(allocator):
        if allocator is not None:
            triton.set_allocator(allocator)
        _provide_scratch()
        return _allocator.get()

    run = contextvars.Context().run
    assert run(in_a_context_of_its_own, users) is users
    ours = run(in_a_context_of_its_own, None)
    if torch.cuda.is_available():
        assert ours(100, 128, None).nbytes == 100
    else:
        assert callable(ours)


@pytest.mark.parametrize("by_weight", ["aten", "triton 64x16x32"])
@pytest.mark.parametrize("by_input", ["aten", "triton 64x16x32"])
def test_the_two_gradients_are_chosen_apart(by_input, by_weight, device, monkeypatch):
    """Whichever way each goes, the mask is applied, and ATen is called once at most."""
    asked = []

    def choose(op, direction, mode, candidates, trial, operands, settings):
        assert candidates[0] == "aten"
        assert "triton 64x16x32" in candidates
        if mode == "aten":
            return mode
        asked.append(direction)
        masks.clear()
        timed = trial("aten", *operands)
        assert len(masks) == 1
        for i in (0,) if direction == "input gradient" else (1, 2):
            torch.testing.assert_close(timed[i], expected[i], rtol=1e-4, atol=1e-4)
        return by_input if direction == "input gradient" else by_weight

    x, w, b = leaves(device)
    y = F.relu(F.conv2d(x, w, b, 1, 1, 1, 2))
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, w, b), dy)
    real = torch.ops.aten.convolution_backward
    mask = torch.ops.aten.threshold_backward
    calls, masks = [], []
    monkeypatch.setattr(_conv2d_ops, "choose", choose)
    monkeypatch.setattr(
        _conv2d_ops.aten, "threshold_backward", lambda *a: masks.append(a) or mask(*a)
    )
    monkeypatch.setattr(
        _conv2d_ops.aten, "convolution_backward", lambda *a: calls.append(a[-1]) or real(*a)
    )
    run = [t.detach() for t in (dy, y, x, w)]
    got = torch.ops.fastalex.conv2d_relu_backward(*run, *ARGUMENTS, [True] * 3, "auto")
    assert asked == ["input gradient", "weight gradient"]
    last = [by_input == "aten", by_weight == "aten", by_weight == "aten"]
    assert calls[2:] == ([last] if any(last) else [])  # behind one of each trial
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
