import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import max_pool2d


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
def test_takes_the_maximum(kernel_size, stride, padding, dtype, laid_out):
    """Against windows unfolded in float64: exact in every dtype."""
    x = torch.randn(2, 5, 7, 9).to(dtype)
    kh, kw = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
    sh, sw = (stride or kernel_size,) * 2 if not isinstance(stride, tuple) else stride
    ph, pw = (padding,) * 2 if isinstance(padding, int) else padding
    padded = F.pad(x.double(), (pw, pw, ph, ph), value=-torch.inf)
    expected = padded.unfold(2, kh, sh).unfold(3, kw, sw).amax((-2, -1))
    got = max_pool2d(laid_out(x), kernel_size, stride, padding)
    assert got.dtype == dtype
    assert torch.equal(got.double(), expected)


def test_without_a_batch():
    x = torch.randn(5, 7, 9)
    assert torch.equal(max_pool2d(x, 3, 2), max_pool2d(x[None], 3, 2)[0])


def test_gradcheck():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: max_pool2d(x, 3, 2), x)


def test_channels_last_is_kept():
    x = torch.randn(2, 3, 7, 7).to(memory_format=torch.channels_last)
    assert max_pool2d(x, 3, 2).is_contiguous(memory_format=torch.channels_last)


def test_trap_9_ties_send_the_gradient_to_the_first_in_scan_order(laid_out):
    dx = gradient(laid_out(torch.ones(1, 2, 5, 5)), 3, 2)
    expected = torch.zeros(5, 5)
    expected[0, 0] = expected[0, 2] = expected[2, 0] = expected[2, 2] = 1
    assert torch.equal(dx, expected.expand(1, 2, 5, 5))


def test_trap_9_nan_is_the_maximum_and_takes_the_gradient(laid_out):
    x = torch.zeros(1, 2, 3, 5)
    x[:, :, 1, 3] = float("nan")
    x[:, :, 1, 1] = 7
    y = max_pool2d(laid_out(x), 3, 2)
    assert torch.equal(y[:, :, 0, 0], torch.full((1, 2), 7.0))
    assert y[:, :, 0, 1].isnan().all()
    dx = gradient(laid_out(x), 3, 2)
    assert (dx[:, :, 1, 3] == 1).all()
    assert dx.sum() == 4


def test_errors_where_torch_errs():
    with pytest.raises(RuntimeError):
        max_pool2d(torch.ones(1, 1, 2, 2), 3, 2)
    with pytest.raises(RuntimeError):
        max_pool2d(torch.ones(1, 1, 8, 8), 3, 2, 2)
