import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import conv2d_relu

CASES = {
    "conv1": ((2, 3, 23, 19), (4, 3, 11, 11), {"stride": 4}),
    "conv2": ((2, 8, 6, 7), (12, 4, 5, 5), {"padding": 2, "groups": 2}),
    "groups3": ((1, 6, 5, 5), (3, 2, 3, 3), {"padding": 1, "groups": 3}),
    "same": ((1, 4, 5, 4), (3, 4, 3, 3), {"padding": "same"}),
    "dilated": ((1, 4, 7, 8), (3, 4, 3, 3), {"dilation": 2, "padding": (1, 2)}),
    "without_a_batch": ((3, 9, 9), (4, 3, 3, 3), {}),
}


def reference(x, w, b=None, **options):
    return F.relu(F.conv2d(x, w, b, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_as_accurate_as_float32(case, dtype, check_accuracy):
    x, w, options = CASES[case]
    operands = [torch.randn(x), torch.randn(w), torch.randn(w[0])]
    check_accuracy(
        lambda *o: conv2d_relu(*o, **options), lambda *o: reference(*o, **options), operands, dtype
    )


@pytest.mark.parametrize("case", CASES)
def test_float16_is_torchs(case):
    """To the bit: what ATen's float16 convolution errs on a CPU is not this op's."""
    x, w, options = CASES[case]
    operands = [torch.randn(s, dtype=torch.float16) for s in (x, w, w[:1])]
    assert torch.equal(conv2d_relu(*operands, **options), reference(*operands, **options))


def test_layouts(laid_out, check_accuracy):
    operands = [torch.randn(2, 8, 6, 7), torch.randn(12, 4, 5, 5)]
    check_accuracy(
        lambda *o: conv2d_relu(*o, padding=2, groups=2),
        lambda *o: reference(*o, padding=2, groups=2),
        operands,
        torch.float32,
        laid_out,
    )


def test_gradcheck():
    operands = [torch.randn(s, dtype=torch.float64) for s in ((2, 4, 5, 5), (6, 2, 3, 3), (6,))]
    for operand in operands:
        operand.requires_grad_()
    assert torch.autograd.gradcheck(lambda *o: conv2d_relu(*o, padding=1, groups=2), operands)


def test_nan_stays():
    x = torch.full((1, 1, 3, 3), float("nan"))
    assert conv2d_relu(x, torch.ones(1, 1, 3, 3)).isnan().all()


def test_errors_where_torch_errs():
    with pytest.raises(RuntimeError):
        conv2d_relu(torch.ones(1, 4, 5, 5), torch.ones(2, 3, 3, 3))
    with pytest.raises(RuntimeError):
        conv2d_relu(torch.ones(1, 4, 5, 5), torch.ones(3, 2, 3, 3), groups=2)
