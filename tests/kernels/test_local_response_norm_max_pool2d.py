"""local_response_norm_max_pool2d against torch's two ops, by ATen and by the kernels."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import local_response_norm_max_pool2d, use

MODULE = importlib.import_module("fastalex.kernels.local_response_norm_max_pool2d")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _aten_unless_asked():
    with use("aten"):
        yield


@pytest.fixture
def reference(by_towers):
    """torch's own ops, each tower by itself."""

    def run(x, size, alpha, beta, k, kernel_size, stride, *, groups=1, relu=False):
        normalized = by_towers(F.relu(x) if relu else x, size, alpha, beta, k, groups)
        return F.max_pool2d(normalized, kernel_size, stride)

    return run


def far_apart(shape, sign=1.0):
    """The nine values of any window lie so far apart that rounding cannot move its maximum."""
    b, c, h, w = shape
    nine = (torch.arange(h)[:, None] * 2 % 3 * 3 + torch.arange(w) * 2 % 3).float()
    return sign * 1.4**nine * (1 + 0.1 * torch.rand(b, c, h, w))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_then_pool(dtype, groups, laid_out, check_accuracy, reference):
    check_accuracy(
        lambda x: local_response_norm_max_pool2d(x, 5, 1e-3, 0.75, 2.0, 3, 2, groups=groups),
        lambda x: reference(x, 5, 1e-3, 0.75, 2.0, 3, 2, groups=groups),
        [far_apart((2, 8, 7, 9))],
        dtype,
        laid_out,
    )


def test_derivatives():
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: local_response_norm_max_pool2d(x, 5, 0.3, 0.75, 1.0, 3, 2, groups=2, relu=True), x
    )


def test_says_what_is_wrong(implementation):
    with pytest.raises(ValueError, match="must divide the 5 channels"):
        local_response_norm_max_pool2d(torch.ones(1, 5, 4, 4), 5, 1e-4, 0.75, 2.0, 3, 2, groups=2)
    with pytest.raises(RuntimeError):
        local_response_norm_max_pool2d(torch.ones(1, 5, 2, 4), 5, 1e-4, 0.75, 2.0, 3, 2)


TRITON_CASES = [  # shape, groups, relu, sign
    ((1, 96, 5, 3), 2, True, 1.0),  # AlexNet's first, cut small
    ((1, 256, 3, 3), 2, True, 1.0),  # its second
    ((2, 8, 19, 4), 1, False, 1.0),  # more pooled rows than one thread walks
    ((2, 16, 5, 7), 2, False, -1.0),
    ((1, 12, 6, 9), 2, True, 1.0),  # octets that are not full, rows that no window holds
    ((2, 9, 4, 5), 3, False, -1.0),  # less than an octet
    ((1, 1, 3, 8), 1, True, 1.0),  # one channel
]


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "groups", "relu", "sign"), TRITON_CASES, ids=str)
def test_kernels_are_as_accurate_as_float32(
    shape, groups, relu, sign, dtype, check_accuracy, reference
):
    x = far_apart(shape, sign)
    if relu:
        x[:, :, 1] *= -1
    settings = 5, 1e-3, 0.75, 2.0, 3, 2
    check_accuracy(
        lambda x: local_response_norm_max_pool2d(x, *settings, groups=groups, relu=relu),
        lambda x: reference(x, *settings, groups=groups, relu=relu),
        [x],
        dtype,
    )


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_kernels_with_other_powers_in_every_layout(beta, laid_out, check_accuracy, reference):
    check_accuracy(
        lambda x: local_response_norm_max_pool2d(x, 5, 1e-3, beta, 2.0, 3, 2),
        lambda x: reference(x, 5, 1e-3, beta, 2.0, 3, 2),
        [far_apart((1, 16, 5, 6))],
        torch.bfloat16,
        laid_out,
    )


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride"), [(3, 3, 2), (5, 2, None), (5, (3, 2), (2, 1))], ids=str
)
def test_other_windows_and_pools(size, kernel_size, stride, check_accuracy, reference):
    """One op after the other, each by its kernel where it has one."""
    check_accuracy(
        lambda x: local_response_norm_max_pool2d(
            x, size, 1e-3, 0.75, 2.0, kernel_size, stride, relu=True
        ),
        lambda x: reference(x, size, 1e-3, 0.75, 2.0, kernel_size, stride, relu=True),
        [far_apart((1, 9, 5, 6))],
        torch.float32,
    )


def both_ways(op, x, dy, **options):
    leaf = x.clone().requires_grad_()
    y = op(leaf, 5, 0.1, 0.75, 1.0, 3, 2, **options)
    return y.detach(), *torch.autograd.grad(y, leaf, dy.to(y))


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("dtype", "relu"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_ties_send_the_gradient_to_the_first_in_scan_order(dtype, relu, device, reference):
    """Small whole numbers, the same in all channels: most windows have several maxima."""
    x = torch.randint(-1, 2, (2, 1, 7, 7)).to(dtype).expand(2, 8, 7, 7).to(device)
    x = torch.cat([x, torch.zeros_like(x[:1]), -torch.ones_like(x[:1])])
    dy = torch.randint(1, 9, (4, 8, 3, 3), device=device)
    got = both_ways(local_response_norm_max_pool2d, x, dy, relu=relu)
    expected = both_ways(reference, x.double().cpu(), dy.cpu(), relu=relu)
    for g, e in zip(got, expected, strict=True):
        close = 2 * torch.finfo(dtype).eps * e.abs().max().item()
        torch.testing.assert_close(g.double().cpu(), e, rtol=0, atol=close)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_and_infinity_as_torch(dtype, relu, device, reference):
    x = torch.randn(1, 32, 7, 9).to(dtype)
    x[0, 3, 2, 2], x[0, 9, 4, 6] = float("nan"), float("inf")
    x[0, 20, 0, 0], x[0, 20, 0, 1] = float("-inf"), float("nan")
    x[0, 27, 5, :2] = float("nan")
    dy = torch.randn(1, 32, 3, 4)
    dy[0, 16, 2, 3], dy[0, 14, 0, 3] = float("nan"), float("inf")
    got = both_ways(local_response_norm_max_pool2d, x.to(device), dy.to(device), relu=relu)
    expected = both_ways(reference, x.double(), dy, relu=relu)
    eps = torch.finfo(dtype).eps
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.cpu(), e.to(dtype), equal_nan=True, rtol=4 * eps, atol=4 * eps)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_gradient_the_same_answer_and_no_places(dtype, device, monkeypatch):
    x = torch.randn(2, 16, 5, 7, device=device).to(dtype)
    places = []
    launch = MODULE._launch_forward
    monkeypatch.setattr(MODULE, "_launch_forward", lambda *a: (places.append(a[2]), launch(*a)))
    plain = local_response_norm_max_pool2d(x, 5, 1e-2, 0.75, 2.0, 3, 2)
    x.requires_grad_()
    trained = local_response_norm_max_pool2d(x, 5, 1e-2, 0.75, 2.0, 3, 2)
    with torch.no_grad():
        local_response_norm_max_pool2d(x, 5, 1e-2, 0.75, 2.0, 3, 2)
    torch.testing.assert_close(plain, trained.detach())
    assert [p.numel() for p in places] == [0, trained.numel(), 0]
    assert all(p.dtype == torch.int8 for p in places)


@pytest.mark.usefixtures("triton")
def test_the_same_bits_twice(device):
    x = torch.randn(1, 24, 7, 7, device=device, dtype=torch.bfloat16)
    dy = torch.ones(1, 24, 3, 3, device=device)
    first, second = (both_ways(local_response_norm_max_pool2d, x, dy) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.usefixtures("triton")
def test_layout_is_kept(device):
    x = torch.randn(2, 8, 3, 5, device=device).to(memory_format=torch.channels_last)
    for leaf in (x.requires_grad_(), x.detach().contiguous().requires_grad_()):
        y = local_response_norm_max_pool2d(leaf, 5, 1e-4, 0.75, 2.0, 3, 2)
        assert y.stride() == F.max_pool2d(leaf, 3, 2).stride()
        assert torch.autograd.grad(y.sum(), leaf)[0].stride() == leaf.stride()


@pytest.mark.usefixtures("triton")
def test_second_derivatives_of_the_kernels_are_an_error(device):
    x = torch.randn(1, 8, 3, 3, device=device).requires_grad_()
    y = local_response_norm_max_pool2d(x, 5, 1e-4, 0.75, 2.0, 3, 2)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="local_response_norm_max_pool2d_backward"):
        dx.sum().backward()
