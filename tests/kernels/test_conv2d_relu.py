import pytest
import torch
import torch.nn.functional as F

from fastalex import kernels
from fastalex.kernels import conv2d_relu

CASES = {  # x, weight, arguments
    "conv1": ((2, 3, 23, 19), (4, 3, 11, 11), {"stride": 4}),
    "conv1_padded": ((2, 3, 22, 21), (4, 3, 11, 11), {"stride": 4, "padding": 2}),
    "conv1_uneven": ((1, 3, 25, 26), (9, 3, 11, 10), {"stride": 4, "padding": (3, 1)}),
    "conv2": ((2, 96, 4, 5), (10, 48, 3, 5), {"padding": (1, 2), "groups": 2}),
    "conv3": ((1, 16, 13, 13), (24, 16, 3, 3), {"padding": 1}),
    "groups3": ((1, 6, 5, 5), (3, 2, 3, 3), {"padding": 1, "groups": 3}),
    "one_of_all": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "one_channel": ((2, 1, 6, 5), (1, 1, 2, 3), {}),
    "images": ((130, 5, 1, 2), (7, 5, 3, 3), {"padding": 1}),
    "strided": ((2, 20, 9, 8), (5, 20, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "strided_groups": ((1, 6, 9, 9), (4, 3, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "dilated": ((1, 4, 7, 8), (3, 4, 3, 3), {"dilation": 2, "padding": (1, 2)}),
    "strided_dilated": ((1, 2, 9, 12), (3, 2, 3, 3), {"stride": (1, 2), "dilation": (3, 2)}),
    "more_padding_than_kernel": ((1, 2, 3, 3), (2, 2, 1, 2), {"padding": (2, 3)}),
    "no_window_reaches_the_rest": ((1, 3, 14, 13), (2, 3, 4, 4), {"stride": 4}),
    "same": ((1, 4, 5, 4), (3, 4, 3, 5), {"padding": "same"}),
    "same_uneven": ((1, 4, 5, 4), (3, 4, 2, 4), {"padding": "same"}),
    "valid": ((1, 4, 5, 4), (3, 4, 3, 3), {"padding": "valid"}),
    "one_tuples": ((1, 4, 5, 6), (3, 4, 3, 3), {"padding": (1,), "stride": [2]}),
    "without_a_batch": ((3, 9, 9), (4, 3, 3, 3), {}),
}
NAN, INF = float("nan"), float("inf")

pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


@pytest.fixture
def dtypes(device):
    """Triton's interpreter multiplies bfloat16 as if it were integers; float16 stands for it."""
    return [torch.float32, torch.float16] + [torch.bfloat16] * (device.type == "cuda")


def reference(x, w, b=None, **options):
    return F.relu(F.conv2d(x, w, b, **options))


@pytest.mark.parametrize("case", CASES)
def test_as_accurate_as_float32(case, dtypes, triton, check_accuracy):
    x, w, options = CASES[case]
    operands = [torch.randn(x), torch.randn(w), torch.randn(w[0])]
    for dtype in dtypes:
        check_accuracy(
            lambda *o: conv2d_relu(*o, **options),
            lambda *o: reference(*o, **options),
            operands,
            dtype,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_aten_as_accurate_as_float32(case, dtype, check_accuracy):
    x, w, options = CASES[case]
    operands = [torch.randn(x), torch.randn(w), torch.randn(w[0])]
    with kernels.use("aten"):
        check_accuracy(
            lambda *o: conv2d_relu(*o, **options),
            lambda *o: reference(*o, **options),
            operands,
            dtype,
        )


@pytest.mark.parametrize("case", ["conv1_padded", "groups3", "strided", "same"])
def test_layouts(case, laid_out, triton, check_accuracy):
    x, w, options = CASES[case]
    check_accuracy(
        lambda *o: conv2d_relu(*o, **options),
        lambda *o: reference(*o, **options),
        [torch.randn(x), torch.randn(w)],
        torch.float32,
        laid_out,
    )


@pytest.mark.parametrize("case", ["conv1", "groups3"])
@pytest.mark.parametrize("last", [(), ("x",), ("w",), ("x", "w")], ids=str)
def test_layout_is_torchs_and_the_weights(case, last, device, triton):
    x, w, options = CASES[case]
    formats = [
        torch.channels_last if name in last else torch.contiguous_format for name in ("x", "w")
    ]
    operands = [
        torch.randn(shape, device=device).to(memory_format=layout).requires_grad_()
        for shape, layout in zip((x, w), formats, strict=True)
    ]
    y, expected = conv2d_relu(*operands, **options), reference(*operands, **options)
    assert y.stride() == expected.stride()
    dx, dw = torch.autograd.grad(y.sum(), operands)
    assert dx.stride() == torch.autograd.grad(expected.sum(), operands[0])[0].stride()
    assert dw.stride() == operands[1].stride()  # which saves autograd a copy


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("case", ["conv1", "groups3", "strided_groups"])
def test_only_what_is_asked_for(case, asked, device, triton):
    x, w, options = CASES[case]
    operands = [torch.randn(s, device=device) for s in (x, w, w[:1])]
    for i in asked:
        operands[i].requires_grad_()
    wanted = [operands[i] for i in asked]
    got = torch.autograd.grad(conv2d_relu(*operands, **options).sum(), wanted)
    expected = torch.autograd.grad(reference(*operands, **options).sum(), wanted)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_mask_at_zero_and_nan(dtype, device, implementation):
    """y is 0 exactly, positive, negative and NaN: the gradient stops, passes, stops and passes."""
    x = torch.tensor([0.0, 2.0, -2.0, NAN], dtype=dtype, device=device).view(1, 1, 1, 4)
    x.requires_grad_()
    y = conv2d_relu(x, torch.ones(1, 1, 1, 1, dtype=dtype, device=device))
    torch.testing.assert_close(
        y.detach().cpu(), torch.tensor([[[[0, 2, 0, NAN]]]]).to(dtype), equal_nan=True
    )
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, 3))
    assert dx.flatten().tolist() == [0, 3, 0, 3]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("case", ["conv2", "groups3", "strided_groups", "dilated"])
def test_nan_and_infinity_as_torch(case, value, device, implementation):
    """In the input and the gradient they reach what they reach in torch, and no more.

    The gradient's is put where no tap meets the border: torch's own kernels differ in whether the
    zeros beyond it count, and 0 * inf is NaN.
    """
    x, w, options = CASES[case]
    operands = [torch.randn(s) for s in (x, w, w[:1])]
    operands[0][-1, 1, 1, 2] = value
    dy = torch.randn(reference(*operands, **options).shape)
    dy[0, 0, 2, 2] = value

    def run(function, where):
        leaves = [o.to(where).requires_grad_() for o in operands]
        y = function(*leaves, **options)
        return [t.detach().cpu() for t in (y, *torch.autograd.grad(y, leaves, dy.to(where)))]

    for got, expected in zip(run(conv2d_relu, device), run(reference, "cpu"), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["conv1", "conv3", "groups3"])
def test_two_runs_give_equal_bits(case, device, triton):
    x, w, options = CASES[case]
    operands = [torch.randn(s, device=device).half().requires_grad_() for s in (x, w, w[:1])]

    def run():
        y = conv2d_relu(*operands, **options)
        return y, *torch.autograd.grad(y.square().sum(), operands)

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


def test_gradcheck():
    operands = [torch.randn(s, dtype=torch.float64) for s in ((2, 4, 5, 5), (6, 2, 3, 3), (6,))]
    for operand in operands:
        operand.requires_grad_()
    assert torch.autograd.gradcheck(lambda *o: conv2d_relu(*o, padding=1, groups=2), operands)


def test_second_derivatives_are_an_error(device, triton):
    x = torch.randn(1, 2, 4, 4, device=device, requires_grad=True)
    y = conv2d_relu(x, torch.randn(2, 2, 3, 3, device=device))
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(dx.sum(), x)


def test_no_images(device, implementation):
    x = torch.randn(0, 4, 5, 5, device=device, requires_grad=True)
    w = torch.randn(3, 4, 3, 3, device=device, requires_grad=True)
    y = conv2d_relu(x, w, padding=2)
    assert y.shape == reference(x, w, padding=2).shape
    for gradient in torch.autograd.grad(y.sum(), (x, w)):
        assert not gradient.any()


@pytest.mark.parametrize(
    ("x", "w", "b", "options"),
    [
        ((1, 4, 5, 5), (2, 3, 3, 3), None, {}),
        ((1, 4, 5, 5), (3, 2, 3, 3), None, {"groups": 2}),
        ((1, 4, 5, 5), (2, 4, 3, 3), 3, {}),
        ((1, 4, 2, 5), (2, 4, 3, 3), None, {}),
        ((1, 4, 5, 5), (2, 4, 3, 3), None, {"stride": 0}),
        ((1, 4, 5, 5), (2, 4, 3, 3), None, {"stride": (1, 1, 1)}),
        ((1, 4, 5, 5), (2, 4, 3, 3), None, {"padding": -1}),
        ((1, 4, 5, 5), (2, 4, 3, 3), None, {"padding": "full"}),
        ((1, 4, 5, 5), (2, 4, 3, 3), None, {"padding": "same", "stride": 2}),
        ((1, 4, 5, 5), (2, 4, 3, 3), None, {"dilation": 0}),
        ((1, 4, 5, 5), (2, 4, 3, 3), None, {"groups": 0}),
        ((4, 5), (2, 4, 3, 3), None, {}),
        ((1, 4, 5, 5), (2, 4, 3), None, {}),
    ],
    ids=str,
)
def test_errors_are_torchs(x, w, b, options, device, implementation):
    operands = [torch.ones(x, device=device), torch.ones(w, device=device)]
    operands.append(None if b is None else torch.ones(b, device=device))
    messages = []
    for function in (F.conv2d, conv2d_relu):
        with pytest.raises((RuntimeError, TypeError)) as raised:
            function(*operands, **options)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "options", [{"stride": True}, {"padding": (True, 1)}, {"dilation": True}, {"groups": True}]
)
def test_bools_are_no_integers(options, device, implementation):
    x, w = torch.ones(1, 4, 5, 5, device=device), torch.ones(2, 4, 3, 3, device=device)
    with pytest.raises(TypeError, match="received an invalid combination of arguments"):
        conv2d_relu(x, w, **options)


def test_mixed_dtypes_are_torchs_error(device, implementation):
    x, w = torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 1, 1, device=device).half()
    with pytest.raises(RuntimeError):
        conv2d_relu(x, w)
