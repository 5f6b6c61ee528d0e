import importlib

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import local_response_norm, use

MODULE = importlib.import_module("fastalex.kernels.local_response_norm")
SHAPES = [(2, 96, 5, 7), (1, 12, 3, 3), (3, 6, 1, 1), (1, 6, 2, 9)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _aten_unless_asked():
    with use("aten"):
        yield


def by_towers(x, size, alpha, beta, k, groups):
    """torch's own op on each tower by itself."""
    towers = x.chunk(groups, dim=1)
    return torch.cat([F.local_response_norm(t, size, alpha, beta, k) for t in towers], dim=1)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_float32(shape, dtype, groups, laid_out, check_accuracy):
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
def test_every_window_and_power(size, beta, check_accuracy):
    """Even windows reach one channel further down; wide ones cover everything."""
    check_accuracy(
        lambda x: local_response_norm(x, size, 0.3, beta, 1.5, groups=2),
        lambda x: by_towers(x, size, 0.3, beta, 1.5, 2),
        [torch.randn(2, 10, 3, 4)],
        torch.float32,
    )


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 2, 3, 4), (2, 6, 2, 1, 2, 3)], ids=str)
def test_other_dimensions(shape, check_accuracy):
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


TRITON_CASES = [  # shape, groups, relu
    ((2, 96, 1, 3), 2, True),  # AlexNet's first, cut small
    ((1, 256, 2, 1), 2, True),  # its second
    ((2, 12, 3, 1), 1, False),  # octets that are not full
    ((1, 12, 2, 2), 2, True),
    ((3, 15, 1, 1), 3, False),  # less than an octet
    ((1, 1, 2, 3), 1, True),  # one channel
    ((1, 8, 1, 1), 1, False),  # one octet
]


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "groups", "relu"), TRITON_CASES, ids=str)
def test_kernels_are_as_accurate_as_float32(shape, groups, relu, dtype, check_accuracy):
    check_accuracy(
        lambda x: local_response_norm(x, 5, 0.2, 0.75, 2.0, groups=groups, relu=relu),
        lambda x: by_towers(F.relu(x) if relu else x, 5, 0.2, 0.75, 2.0, groups),
        [3 * torch.randn(shape)],
        dtype,
    )


@pytest.mark.usefixtures("triton")
def test_kernels_in_every_layout(laid_out, check_accuracy):
    check_accuracy(
        lambda x: local_response_norm(x, 5, 0.2, 0.75, 2.0, groups=2),
        lambda x: by_towers(x, 5, 0.2, 0.75, 2.0, 2),
        [torch.randn(2, 20, 3, 2)],
        torch.float32,
        laid_out,
    )


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("shape", [(2, 10, 5), (2, 9, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, -0.3])
def test_kernels_in_other_dimensions_and_powers(beta, shape, check_accuracy):
    check_accuracy(
        lambda x: local_response_norm(x, 5, 0.3, beta, 1.5),
        lambda x: F.local_response_norm(x, 5, 0.3, beta, 1.5),
        [torch.randn(shape)],
        torch.bfloat16,
    )


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_treat_nan_and_infinity_as_torch(dtype, relu, device):
    x = torch.randn(1, 32, 1, 5).to(dtype)
    x[0, 3, 0, 0], x[0, 9, 0, 1], x[0, 16, 0, 2] = float("nan"), float("inf"), float("-inf")
    dy = torch.randn_like(x)
    dy[0, 21, 0, 3] = float("nan")
    dy[0, 7, 0, 4] = float("inf")

    def run(op, x, dy):
        x.requires_grad_()
        y = op(x)
        return y.detach(), *torch.autograd.grad(y, x, dy)

    got = run(
        lambda x: local_response_norm(x, 5, 0.1, relu=relu), x.to(device, copy=True), dy.to(device)
    )
    expected = run(
        lambda x: F.local_response_norm(F.relu(x) if relu else x, 5, 0.1), x.double(), dy.double()
    )
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(
            g.cpu(), e.to(dtype), equal_nan=True, rtol=2 * torch.finfo(dtype).eps, atol=1e-6
        )


@pytest.mark.usefixtures("triton")
def test_kernels_give_the_same_bits_twice(device):
    def run():
        torch.manual_seed(1)
        x = torch.randn(1, 40, 3, 1, device=device, dtype=torch.bfloat16).requires_grad_()
        y = local_response_norm(x, 5)
        return y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))

    assert all(map(torch.equal, run(), run()))


@pytest.mark.usefixtures("triton")
def test_layout_is_kept_by_the_kernels(device):
    x = torch.randn(2, 8, 3, 5, device=device).to(memory_format=torch.channels_last)
    for leaf in (x.requires_grad_(), x.detach().contiguous().requires_grad_()):
        y = local_response_norm(leaf, 5)
        assert y.stride() == leaf.stride()
        assert torch.autograd.grad(y.sum(), leaf)[0].stride() == leaf.stride()


@pytest.mark.usefixtures("triton")
def test_second_derivatives_of_the_kernels_are_an_error(device):
    x = torch.randn(1, 8, 1, 1, device=device).requires_grad_()
    (dx,) = torch.autograd.grad(local_response_norm(x, 5).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="local_response_norm_backward"):
        dx.sum().backward()


SETTINGS = 0.2, 0.75, 2.0, 2, True


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_ops_are_well_formed(mode, layout, device):
    x = torch.randn(2, 8, 3, 2, device=device).to(memory_format=layout)
    checks = opchecks(mode, device)
    torch.library.opcheck(MODULE._local_response_norm, (x, *SETTINGS, mode), test_utils=checks)
    torch.library.opcheck(
        MODULE._local_response_norm_backward, (x, x, *SETTINGS, mode), test_utils=checks
    )


def opchecks(mode, device):
    """Triton's interpreter cannot run what torch traces."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if mode == "auto" or device.type == "cuda":
        checks.append("test_aot_dispatch_dynamic")
    return checks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ops_compile_whole_and_agree(dtype, device, monkeypatch):
    """The way that a GPU's tensors go; on a CPU the ops then choose ATen."""
    monkeypatch.setattr(MODULE, "route", lambda *_: "auto")
    x = torch.randn(2, 8, 3, 5, dtype=dtype, device=device)

    def run(op):
        leaf = x.clone().requires_grad_()
        y = op(leaf, 5, 0.3, 0.75, 1.0, groups=2, relu=True)
        return y.detach(), *torch.autograd.grad(y, leaf, x)

    torch.compiler.reset()
    compiled = torch.compile(local_response_norm, fullgraph=True, backend="aot_eager")
    expected = run(local_response_norm)
    assert expected[1].count_nonzero() > 20
    for got, e in zip(run(compiled), expected, strict=True):
        torch.testing.assert_close(got, e)
