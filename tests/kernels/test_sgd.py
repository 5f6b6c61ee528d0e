"""The fused momentum step against the formula in float64, and bit for bit torch's where it is."""

import pytest
import torch

from fastalex.kernels import _aten_sgd, use
from fastalex.kernels._aten_sgd import share_a_dense_layout
from fastalex.kernels.sgd import _momentum_sgd_, momentum_sgd_

SHAPES = [(1,), (4, 3, 5, 5), (1024,), (31, 67), (2, 1, 1, 3)]
GRADS = [torch.float32, torch.float16, torch.bfloat16]


def parameter(shape, device, dtype=torch.float32, layout=torch.contiguous_format):
    """Weight, velocity and gradient."""
    drawn = [torch.randn(shape, device=device).to(dtype) for _ in range(3)]
    return [x.to(memory_format=layout) if x.dim() == 4 else x for x in drawn]


def step_by_hand(w, v, g, lr, momentum, weight_decay):
    v = momentum * v - lr * (g + weight_decay * w)
    return w + v, v


def check(got, exact, float32):
    """No worse than twice what plain float32 errs, plus one rounding of the largest."""
    error = (got.double() - exact).abs().max()
    floor = torch.finfo(got.dtype).eps * exact.abs().max()
    assert error <= 2 * (float32.to(got.dtype).double() - exact).abs().max() + floor


@pytest.fixture(params=["triton", "auto"])
def mode(request):
    with use(request.param):
        yield request.param


@pytest.mark.parametrize("copy", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", GRADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_float32(shape, grad, copy, mode, device):
    w, v, g = parameter(shape, device)
    g = g.to(grad)
    settings = 0.1, 0.9, 5e-2 if copy else 0.0
    exact = step_by_hand(w.double(), v.double(), g.double(), *settings)
    float32 = step_by_hand(w, v, g.float(), *settings)
    copies = [] if copy is None else [torch.empty_like(w, dtype=copy)]
    given = g.clone()
    momentum_sgd_([w], [v], [g], *settings, copies=copies)
    check(w, exact[0], float32[0])
    check(v, exact[1], float32[1])
    assert torch.equal(g, given)
    for c in copies:
        torch.testing.assert_close(c, w.to(copy), rtol=torch.finfo(copy).eps, atol=0)


def test_twenty_steps_with_a_rate_that_falls(mode, device):
    w, v, g = parameter((5, 211), device)
    exact = float32 = w.clone(), v.clone()
    exact = [x.double() for x in exact]
    for step in range(20):
        lr = 0.1 * 0.8**step
        momentum_sgd_([w], [v], [g], lr, 0.9, 0.01)
        exact = step_by_hand(*exact, g.double(), lr, 0.9, 0.01)
        float32 = step_by_hand(*float32, g, lr, 0.9, 0.01)
    check(w, exact[0], float32[0])
    check(v, exact[1], float32[1])


@pytest.mark.parametrize("part", [64, 2**18])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_on_a_cpu_bit_for_bit_torchs_foreach(dtype, tensor_lr, weight_decay, part, monkeypatch):
    monkeypatch.setattr(_aten_sgd, "PART", part)
    parameters = [parameter(shape, "cpu", dtype) for shape in SHAPES]
    weights, velocities, grads = map(list, zip(*parameters, strict=True))
    expected_w, expected_v = ([x.clone() for x in each] for each in (weights, velocities))
    lr = torch.tensor(0.1) if tensor_lr else 0.1
    pull = grads
    if weight_decay:
        pull = torch._foreach_add(pull, expected_w, alpha=weight_decay)
    pull = torch._foreach_mul(pull, lr)
    torch._foreach_mul_(expected_v, 0.9)
    torch._foreach_sub_(expected_v, pull)
    torch._foreach_add_(expected_w, expected_v)
    momentum_sgd_(weights, velocities, grads, lr, 0.9, weight_decay)
    for got, expected in zip(weights + velocities, expected_w + expected_v, strict=True):
        assert torch.equal(got, expected)


def test_parts_of_a_cpus_update(monkeypatch):
    """Of channels_last weights with an offset, copies in half precision, an odd tail."""
    monkeypatch.setattr(_aten_sgd, "PART", 11)
    memory = torch.randn(500)
    w = memory[20:110].view(5, 3, 2, 3).to(memory_format=torch.channels_last)
    v, g = torch.randn_like(w), torch.randn_like(w).bfloat16()
    copy, before = torch.zeros_like(g), memory.clone()
    exact = step_by_hand(w.double(), v.double(), g.double(), 0.1, 0.9, 0.01)
    momentum_sgd_([w], [v], [g], 0.1, 0.9, 0.01, copies=[copy])
    torch.testing.assert_close((w.double(), v.double()), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(copy, w.bfloat16())
    view = memory[20:110].view(5, 3, 6)
    momentum_sgd_([view], [torch.zeros_like(view)], [torch.ones_like(view)], 1.0, 0.9, 0.0)
    assert torch.equal(memory[20:110], before[20:110] - 1)
    assert torch.equal(memory[:20], before[:20])
    assert torch.equal(memory[110:], before[110:])


def test_a_tensor_rate_is_read_at_each_step(mode, device):
    lr = torch.tensor(1.0, device=device)
    w, v, g = (torch.full((300,), value, device=device) for value in (0.0, 0.0, 1.0))
    momentum_sgd_([w], [v], [g], lr, 0.5, 0.0)
    lr.fill_(0)
    momentum_sgd_([w], [v], [g], lr, 0.5, 0.0)
    assert torch.equal(w, torch.full_like(w, -1.5))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_any_tensor_of_one_element_is_a_rate(shape, mode, device):
    """Also where ATen computes: weights in float64."""
    for dtype in (torch.float32, torch.float64):
        w, v, g = parameter((3, 4), device, dtype)
        expected, _ = step_by_hand(w, v, g, 0.1, 0.9, 0.0)
        momentum_sgd_([w], [v], [g], torch.full(shape, 0.1, device=device), 0.9, 0.0)
        torch.testing.assert_close(w, expected)


def test_a_frozen_parameter_is_named():
    w = torch.ones(3)
    with pytest.raises(TypeError, match="parameter 1 is not all tensors; leave out those without"):
        momentum_sgd_([w, w], [w, w], [w, None], 0.1, 0.9, 0.0)


def test_a_rate_of_another_dtype_or_device(mode, device):
    w, v, g = (torch.full((7,), value, device=device) for value in (0.0, 0.0, 1.0))
    momentum_sgd_([w], [v], [g], torch.tensor(0.25, dtype=torch.float64), 0.5, 0.0)
    assert torch.equal(w, torch.full_like(w, -0.25))


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "gaps": lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
}


@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS], ids=str)
def test_layouts(layouts, mode, device):
    """Alike and dense: the kernel. With gaps, or a gradient laid otherwise: ATen, as well."""
    w, v, g = parameter((4, 3, 6, 5), device)
    expected = step_by_hand(w, v, g, 0.1, 0.9, 0.01)
    w, v, g = (LAYOUTS[name](x) for name, x in zip((layouts[0], *layouts), (w, v, g), strict=True))
    momentum_sgd_([w], [v], [g], 0.1, 0.9, 0.01)
    torch.testing.assert_close(w, expected[0])
    torch.testing.assert_close(v, expected[1])


def test_what_shares_a_dense_layout():
    x = torch.empty(4, 1, 6)
    assert share_a_dense_layout(x, x.as_strided(x.shape, (6, 1, 1)))  # no step along one column
    assert share_a_dense_layout(x.transpose(0, 2), x.transpose(0, 2).clone())
    assert not share_a_dense_layout(x, torch.empty(6, 1, 4).transpose(0, 2))
    assert not share_a_dense_layout(x[:, :, :3], x[:, :, 3:])
    assert not share_a_dense_layout(x[:1].expand(4, 1, 6), x)


def test_what_lies_between_is_not_touched(mode, device):
    store = torch.zeros(3, 20, device=device)
    w, v, g = store[:, ::2], torch.zeros(3, 10, device=device), torch.ones(3, 10, device=device)
    momentum_sgd_([w], [v], [g], 1.0, 0.9, 0.0)
    assert (store[:, 1::2] == 0).all()
    assert (store[:, ::2] == -1).all()


def test_mixed_parameters_and_an_empty_one(mode, device):
    """Each as if alone: what the kernel covers, float64, and nothing at all."""
    parameters = [parameter(shape, device) for shape in ((3, 5), (0, 4), (70,))]
    parameters.insert(1, parameter((9,), device, torch.float64))
    expected = [step_by_hand(*p, 0.1, 0.9, 0.01) for p in parameters]
    momentum_sgd_(*map(list, zip(*parameters, strict=True)), 0.1, 0.9, 0.01)
    for (w, v, _), (new_w, new_v) in zip(parameters, expected, strict=True):
        torch.testing.assert_close(w, new_w)
        torch.testing.assert_close(v, new_v)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # the interpreter's numpy
def test_without_decay_an_infinity_is_not_multiplied_by_zero(mode, device):
    w, v, g = (torch.full((5,), value, device=device) for value in (torch.inf, 1.0, 1.0))
    momentum_sgd_([w], [v], [g], 0.1, 0.9, 0.0)
    assert (w == torch.inf).all()
    g[2] = torch.nan
    momentum_sgd_([w], [v], [g], 0.1, 0.9, 0.0)
    assert w.isnan().tolist() == v.isnan().tolist() == [False, False, True, False, False]


def test_two_runs_give_equal_bits(mode, device):
    first, second = parameter((9, 401), device), None
    second = [x.clone() for x in first]
    for w, v, g in (first, second):
        momentum_sgd_([w], [v], [g], 0.1, 0.9, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_errors():
    w = [torch.zeros(3)]
    with pytest.raises(ValueError, match=r"equally long, got \[1, 1, 2, 0\]"):
        momentum_sgd_(w, w, [*w, *w], 0.1, 0.9, 0.0)
    with pytest.raises(ValueError, match=r"parameter 0 must agree .* \(3,\) on cpu.* \(4,\) on"):
        momentum_sgd_(w, w, [torch.zeros(4)], 0.1, 0.9, 0.0)
    with pytest.raises(ValueError, match="equally long"):
        momentum_sgd_(w, w, w, 0.1, 0.9, 0.0, copies=w * 2)


@pytest.mark.parametrize("copy", [False, True])
def test_opcheck(copy, device):
    w, v, g = ([x, x.clone()] for x in parameter((3, 4), device))
    copies = [torch.empty_like(x, dtype=torch.bfloat16) for x in w] if copy else []
    lr = torch.tensor(0.1, device=device)
    torch.library.opcheck(_momentum_sgd_, (w, v, g, copies, lr, 0.9, 0.01, "auto"))


def test_compiled_step(device):
    """One graph for both rates; the op in it takes ATen's part on a CPU, the kernel's on a GPU."""
    lr = torch.tensor(0.1, device=device)

    def step(weights, velocities, grads, lr):
        _momentum_sgd_(weights, velocities, grads, [], lr, 0.9, 0.01, "auto")

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours = [[x, 2 * x] for x in parameter((3, 4, 2, 2), device, layout=torch.channels_last)]
    theirs = [[x.clone() for x in each] for each in ours]
    for rate in (0.1, 0.01):
        lr.fill_(rate)
        compiled(*ours, lr)
        step(*theirs, lr)
    torch.testing.assert_close(ours, theirs)
