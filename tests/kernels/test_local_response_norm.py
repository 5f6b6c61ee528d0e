"""local_response_norm as an op: torch's answer, gradients, errors. ATen computes."""

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import local_response_norm, use

SHAPES = [(2, 96, 5, 7), (1, 12, 3, 3), (3, 6, 1, 1), (1, 6, 2, 9)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _aten_unless_asked():
    with use("aten"):
        yield


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_float32(shape, dtype, groups, laid_out, check_accuracy, by_towers):
    x = 3 * torch.randn(shape)
    check_accuracy(
        lambda x: local_response_norm(x, 5, 0.2, 0.75, 2.0, groups=groups),
        lambda x: by_towers(x, 5, 0.2, 0.75, 2.0, groups),
        [x],
        dtype,
        laid_out,
    )


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.0, -0.3])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 7, 13])
def test_every_window_and_power(size, beta, check_accuracy, by_towers):
    """Even windows reach one channel further down; wide ones cover everything."""
    check_accuracy(
        lambda x: local_response_norm(x, size, 0.3, beta, 1.5, groups=2),
        lambda x: by_towers(x, size, 0.3, beta, 1.5, 2),
        [torch.randn(2, 10, 3, 4)],
        torch.float32,
    )


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 2, 3, 4), (2, 6, 2, 1, 2, 3)], ids=str)
def test_other_dimensions(shape, check_accuracy, by_towers):
    check_accuracy(
        lambda x: local_response_norm(x, 3, groups=2),
        lambda x: by_towers(x, 3, 1e-4, 0.75, 1.0, 2),
        [torch.randn(shape)],
        torch.float32,
    )


def test_defaults_are_torchs():
    x = 50 * torch.randn(2, 7, 3, 3)
    torch.testing.assert_close(local_response_norm(x, 5), F.local_response_norm(x, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_do_not_overflow(dtype):
    """300^2 is beyond float16; torch's own op turns it to zero."""
    x = torch.full((1, 8, 2, 2), 300.0)
    got = local_response_norm(x.to(dtype), 5, 5e-4, 0.75, 2.0)
    torch.testing.assert_close(got, F.local_response_norm(x, 5, 5e-4, 0.75, 2.0).to(dtype))


@pytest.mark.parametrize("size", [4, 5])
def test_first_and_second_derivatives(size):
    x = torch.randn(2, 6, 2, 2, dtype=torch.float64, requires_grad=True)

    def op(x):
        return local_response_norm(x, size, 0.3, 0.75, 2.0, groups=2)

    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


def test_layout_is_kept():
    x = torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = local_response_norm(x, 5, groups=2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_compiles_whole_and_agrees(size, layout, dtype):
    x = torch.randn(2, 8, 3, 5, dtype=dtype).to(memory_format=layout)
    dy = torch.randn(2, 8, 3, 5, dtype=dtype)

    def op(x):
        return local_response_norm(x, size, 0.3, groups=2)

    def run(function):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        return y, *torch.autograd.grad(y, leaf, dy)

    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled), run(op), strict=True):
        torch.testing.assert_close(got, expected)


def test_runs_under_vmap_and_grad():
    x = torch.randn(3, 2, 8, 4)
    torch.testing.assert_close(
        torch.func.vmap(lambda x: local_response_norm(x, 5))(x),
        torch.stack([local_response_norm(one, 5) for one in x]),
    )
    leaf = x[0].clone().requires_grad_()
    local_response_norm(leaf, 5).sum().backward()
    torch.testing.assert_close(
        torch.func.grad(lambda x: local_response_norm(x, 5).sum())(x[0]), leaf.grad
    )


def test_autocast_keeps_the_dtype():
    x = torch.randn(2, 8, 3, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = local_response_norm(x, 5)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, local_response_norm(x, 5))


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (2, 6, 0, 4)], ids=str)
def test_empty(shape):
    """Compiled, too, where the window is read by a pool that wants something to read."""
    x = torch.empty(shape)
    assert local_response_norm(x, 5, groups=2).shape == shape
    torch.compiler.reset()
    compiled = torch.compile(local_response_norm, fullgraph=True, backend="aot_eager")
    assert compiled(x, 5, groups=2).shape == shape


def test_nan_and_infinity_as_torch():
    x = torch.randn(1, 12, 1, 2)
    x[0, 3, 0, 0], x[0, 8, 0, 1] = float("nan"), float("inf")
    torch.testing.assert_close(
        local_response_norm(x, 5), F.local_response_norm(x, 5), equal_nan=True
    )


@pytest.mark.parametrize("groups", [4, 0, -1])
def test_groups_must_divide(groups):
    with pytest.raises(ValueError, match=rf"`groups` \(={groups}\) must divide the 6 channels"):
        local_response_norm(torch.ones(2, 6, 3, 3), 5, groups=groups)


def test_errors_where_torch_errs():
    with pytest.raises(ValueError, match="at least 3 dimensions"):
        local_response_norm(torch.ones(2, 6), 5)
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        local_response_norm(torch.ones(2, 6, 3), 0)
    with pytest.raises(TypeError, match=r"floating point, got torch\.int32"):
        local_response_norm(torch.ones(2, 6, 3, dtype=torch.int32), 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_cpu_takes_some_images_at_a_time(layout, monkeypatch):
    """And gives the same bits, in the same layout, and second derivatives."""
    from fastalex.kernels import _aten_response_norm as aten

    x = torch.randn(7, 6, 5, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    dy = torch.randn_like(x)

    def results():
        y = local_response_norm(x, 5, 0.1, 0.75, 2.0, groups=2)
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        (ddx,) = torch.autograd.grad(dx.square().sum(), x)
        return y, dx, ddx

    whole = results()
    calls, function = [], aten._response_norm
    monkeypatch.setattr(aten, "PART", 2 * x[0].numel())
    monkeypatch.setattr(aten, "_response_norm", lambda *a: calls.append(len(a[0])) or function(*a))
    parts = results()
    assert calls == [2, 2, 2, 1]
    for a, b in zip(parts, whole, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(parts[:2], whole[:2], strict=True):
        assert a.stride() == b.stride() == x.stride()
