import importlib

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import max_pool2d, use

MODULE = importlib.import_module("fastalex.kernels.max_pool2d")


@pytest.fixture(autouse=True)
def _aten_unless_asked():
    with use("aten"):
        yield


def gradient(x, *arguments, **options):
    leaf = x.clone().requires_grad_()
    max_pool2d(leaf, *arguments, **options).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(3, 2, 0), (3, 2, 1), (2, None, 0), ((3, 2), (1, 2), (1, 0))],
    ids=str,
)
def test_takes_the_maximum(kernel_size, stride, padding, dtype, laid_out, implementation, device):
    """Against windows unfolded in float64: exact in every dtype."""
    x = torch.randn(1, 9, 7, 9).to(dtype)
    kh, kw = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
    sh, sw = (stride or kernel_size,) * 2 if not isinstance(stride, tuple) else stride
    ph, pw = (padding,) * 2 if isinstance(padding, int) else padding
    padded = F.pad(x.double(), (pw, pw, ph, ph), value=-torch.inf)
    expected = padded.unfold(2, kh, sh).unfold(3, kw, sw).amax((-2, -1))
    got = max_pool2d(laid_out(x.to(device)), kernel_size, stride, padding)
    assert got.dtype == dtype
    assert torch.equal(got.double().cpu(), expected)


def test_without_a_batch(implementation, device):
    x = torch.randn(5, 7, 9, device=device)
    assert torch.equal(max_pool2d(x, 3, 2), max_pool2d(x[None], 3, 2)[0])
    assert torch.equal(gradient(x, 3, 2), gradient(x[None], 3, 2)[0])


def test_gradcheck():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: max_pool2d(x, 3, 2), x)


def test_layout_is_torchs(implementation, device):
    x = torch.randn(2, 3, 3, 7, device=device)
    for leaf in (x.to(memory_format=torch.channels_last).requires_grad_(), x.requires_grad_()):
        y = max_pool2d(leaf, 3, 2)
        assert y.stride() == F.max_pool2d(leaf, 3, 2).stride()
        assert torch.autograd.grad(y.sum(), leaf)[0].stride() == leaf.stride()


def test_trap_9_ties_send_the_gradient_to_the_first_in_scan_order(laid_out, implementation, device):
    dx = gradient(laid_out(torch.ones(1, 2, 5, 5, device=device)), 3, 2).cpu()
    expected = torch.zeros(5, 5)
    expected[0, 0] = expected[0, 2] = expected[2, 0] = expected[2, 2] = 1
    assert torch.equal(dx, expected.expand(1, 2, 5, 5))


def test_trap_9_nan_is_the_maximum_and_takes_the_gradient(laid_out, implementation, device):
    x = torch.zeros(1, 2, 3, 5, device=device)
    x[:, :, 1, 3] = float("nan")
    x[:, :, 1, 1] = 7
    y = max_pool2d(laid_out(x), 3, 2).cpu()
    assert torch.equal(y[:, :, 0, 0], torch.full((1, 2), 7.0))
    assert y[:, :, 0, 1].isnan().all()
    dx = gradient(laid_out(x), 3, 2)
    assert (dx[:, :, 1, 3] == 1).all()
    assert dx.sum() == 4


def test_errors_where_torch_errs(implementation):
    with pytest.raises(RuntimeError):
        max_pool2d(torch.ones(1, 1, 2, 2), 3, 2)
    with pytest.raises(RuntimeError):
        max_pool2d(torch.ones(1, 1, 8, 8), 3, 2, 2)
    with pytest.raises(RuntimeError):
        max_pool2d(torch.ones(1, 1, 8, 8), 0)
    with pytest.raises(RuntimeError):
        max_pool2d(torch.ones(1, 1, 8, 8), 3, -1)
    with pytest.raises((RuntimeError, TypeError)):
        max_pool2d(torch.ones(1, 1, 8, 8), 2.5)
    with pytest.raises((RuntimeError, ValueError)):
        max_pool2d(torch.ones(1, 8), 3)


@pytest.mark.usefixtures("triton")
def test_what_torch_takes_and_the_kernel_does_not(device):
    x = torch.arange(2 * 13 * 13.0, device=device).reshape(1, 2, 13, 13)
    for arguments in ((12,), (1, 13), (3, 2, 1)):  # a wide window, a wide stride
        assert torch.equal(max_pool2d(x, *arguments), F.max_pool2d(x, *arguments))
    assert torch.equal(max_pool2d(x.double(), 3), F.max_pool2d(x.double(), 3))
    assert max_pool2d(x[:0], 3).shape == (0, 2, 4, 4)


TRITON_CASES = [  # shape, kernel_size, stride, padding
    ((1, 32, 7, 5), 3, 2, 0),  # AlexNet's, cut small
    ((2, 9, 6, 8), 3, 2, 1),
    ((1, 5, 4, 6), 2, None, 0),  # windows apart
    ((1, 8, 7, 7), 3, 4, 0),  # pixels between the windows
    ((1, 16, 5, 4), (3, 2), (1, 2), (1, 0)),
    ((1, 8, 5, 5), 5, 1, 2),  # more windows to a pixel than a thread keeps
    ((1, 1, 1, 1), 1, 1, 0),
    ((1, 3, 2, 2), 2, 1, 1),  # more pooled pixels than pixels
    ((2, 3, 30), (1, 25), 2, 0),  # the last place of all, and no batch
]


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "kernel_size", "stride", "padding"), TRITON_CASES, ids=str)
def test_kernels_are_as_accurate_as_float32(
    shape, kernel_size, stride, padding, relu, check_accuracy
):
    """Of whole numbers, most windows have several maxima."""
    for x in (torch.randn(shape), torch.randint(-2, 3, shape).float()):
        check_accuracy(
            lambda x: max_pool2d(x, kernel_size, stride, padding, relu=relu),
            lambda x: F.max_pool2d(F.relu(x) if relu else x, kernel_size, stride, padding),
            [x],
            torch.bfloat16,
        )


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_kernels_in_every_layout(dtype, laid_out, check_accuracy):
    check_accuracy(
        lambda x: max_pool2d(x, 3, 2, relu=True),
        lambda x: F.max_pool2d(F.relu(x), 3, 2),
        [torch.randn(1, 16, 5, 7)],
        dtype,
        laid_out,
    )


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_kernels_treat_nan_and_infinity_as_torch(padding, relu, device):
    """Of several NaN the last is the maximum; windows of -inf alone choose their first pixel."""
    x = torch.randn(1, 8, 7, 7).masked_fill(torch.rand(1, 8, 7, 7) < 0.2, float("nan"))
    x[:, :4] = torch.where(torch.rand(1, 4, 7, 7) < 0.9, float("-inf"), float("inf"))
    x[:, 0] = float("-inf")

    def run(op, x):
        leaf = x.clone().requires_grad_()
        y = op(leaf)
        dy = torch.arange(1.0, y.numel() + 1).reshape(y.shape).to(x)
        return y.detach().cpu(), torch.autograd.grad(y, leaf, dy)[0].cpu()

    got = run(lambda x: max_pool2d(x, 3, 2, padding, relu=relu), x.to(device))
    expected = run(lambda x: F.max_pool2d(F.relu(x) if relu else x, 3, 2, padding), x)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.usefixtures("triton")
def test_without_a_gradient_the_same_answer_and_no_places(device, monkeypatch):
    x = torch.randn(2, 16, 5, 7, device=device)
    places = []
    launch = MODULE._launch_forward
    monkeypatch.setattr(MODULE, "_launch_forward", lambda *a: (places.append(a[2]), launch(*a)))
    plain = max_pool2d(x, 3, 2)
    x.requires_grad_()
    trained = max_pool2d(x, 3, 2)
    with torch.no_grad():
        max_pool2d(x, 3, 2)
    assert torch.equal(plain, trained.detach())
    assert [p.numel() for p in places] == [0, trained.numel(), 0]
    assert all(p.dtype == torch.int8 for p in places)


@pytest.mark.usefixtures("triton")
def test_kernels_give_the_same_bits_twice(device):
    x = torch.randn(1, 24, 7, 7, device=device, dtype=torch.bfloat16)
    assert torch.equal(max_pool2d(x, 3, 2), max_pool2d(x, 3, 2))
    assert torch.equal(gradient(x, 3, 2), gradient(x, 3, 2))


@pytest.mark.usefixtures("triton")
def test_second_derivatives_of_the_kernels_are_an_error(device):
    x = torch.randn(1, 8, 3, 3, device=device).requires_grad_()
    (dx,) = torch.autograd.grad((max_pool2d(x, 3, 2) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="max_pool2d_backward"):
        dx.sum().backward()


SIZES = [3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("relu", [False, True])
def test_where_the_choice_is_aten_the_gradient_is_atens(relu, device, monkeypatch):
    monkeypatch.setattr(MODULE, "route", lambda *_: "auto")
    monkeypatch.setattr(MODULE, "choose", lambda *_: "aten")
    x = torch.randn(2, 8, 5, 7)
    got = gradient(x.to(device), 3, 2, 1, relu=relu).cpu()
    leaf = x.requires_grad_()
    F.max_pool2d(F.relu(leaf) if relu else leaf, 3, 2, 1).sum().backward()
    assert torch.equal(got, leaf.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_ops_are_well_formed(mode, layout, device):
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if mode == "auto" or device.type == "cuda":  # Triton's interpreter cannot run what is traced
        checks.append("test_aot_dispatch_dynamic")
    x = torch.randn(1, 8, 3, 5, device=device).to(memory_format=layout)
    for trained in (False, True):
        arguments = x, SIZES, True, trained, mode
        torch.library.opcheck(MODULE._max_pool2d_op, arguments, test_utils=checks)
    y, places = MODULE._max_pool2d_op(x, SIZES, True, True, mode)
    arguments = y, places, y <= 0, list(x.shape), layout == torch.channels_last, SIZES
    torch.library.opcheck(MODULE._max_pool2d_backward_op, arguments, test_utils=checks)


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (8, 5, 7)], ids=str)
def test_compiles_whole_and_agrees(shape, device, monkeypatch):
    """The way that a GPU's tensors go; on a CPU the ops then choose ATen."""
    monkeypatch.setattr(MODULE, "route", lambda *_: "auto")
    x = torch.randn(shape, device=device)

    def run(op):
        leaf = x.clone().requires_grad_()
        y = op(leaf, 3, 2, 1, relu=True)
        with torch.no_grad():
            plain = op(leaf, 3, 2, 1, relu=True)
        return y.detach(), plain, *torch.autograd.grad(y, leaf, torch.ones_like(y))

    torch.compiler.reset()
    compiled = torch.compile(max_pool2d, fullgraph=True, backend="aot_eager")
    expected = run(max_pool2d)
    assert expected[2].count_nonzero() > 20
    for got, e in zip(run(compiled), expected, strict=True):
        assert torch.equal(got, e)
