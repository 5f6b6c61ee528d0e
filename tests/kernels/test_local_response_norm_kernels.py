"""The kernels of local_response_norm, and the triton_ops that choose and launch them."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import local_response_norm

MODULE = importlib.import_module("fastalex.kernels.local_response_norm")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
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
def test_kernels_are_as_accurate_as_float32(shape, groups, relu, dtype, check_accuracy, by_towers):
    check_accuracy(
        lambda x: local_response_norm(x, 5, 0.2, 0.75, 2.0, groups=groups, relu=relu),
        lambda x: by_towers(F.relu(x) if relu else x, 5, 0.2, 0.75, 2.0, groups),
        [3 * torch.randn(shape)],
        dtype,
    )


@pytest.mark.usefixtures("triton")
def test_kernels_in_every_layout(laid_out, check_accuracy, by_towers):
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


@pytest.mark.parametrize(
    ("size", "beta", "dtype", "covered"),
    [
        (5, 0.75, torch.float32, True),
        (5, 0.5, torch.float32, False),  # a GPU's quick logarithm is too coarse
        (5, 0.5, torch.bfloat16, True),
        (3, 0.75, torch.bfloat16, False),
    ],
)
def test_which_arguments_the_kernels_cover(size, beta, dtype, covered, monkeypatch):
    asked = []
    monkeypatch.setattr(MODULE, "route", lambda *arguments: asked.append(arguments) or "aten")
    x = torch.ones(1, 8, 2, 2, dtype=dtype)
    local_response_norm(x, size, 1e-4, beta)
    assert asked == [("local_response_norm", x, covered)]


SETTINGS = 0.2, 0.75, 2.0, 2, True


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_ops_are_well_formed(mode, layout, device, opchecks):
    x = torch.randn(2, 8, 3, 2, device=device).to(memory_format=layout)
    checks = opchecks(mode)
    torch.library.opcheck(MODULE._local_response_norm, (x, *SETTINGS, mode), test_utils=checks)
    torch.library.opcheck(
        MODULE._local_response_norm_backward, (x, x, *SETTINGS, mode), test_utils=checks
    )


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
