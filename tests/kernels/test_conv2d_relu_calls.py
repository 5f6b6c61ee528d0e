"""conv2d_relu's calls: which the kernels take, the layout they give, what a choice is kept for."""

import sys

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import _conv2d_ops, conv2d_relu

PUBLIC = sys.modules["fastalex.kernels.conv2d_relu"]
LAST = torch.channels_last

pytestmark = pytest.mark.usefixtures("exact_float32")

VIEWS = {  # of maps in channels_last
    "dense": lambda x: x,
    "every_other_channel": lambda x: x[:, ::2],
    "some_rows": lambda x: x[:, :, 1:8],
    "some_columns": lambda x: x[..., 2:7],
    "one_channel": lambda x: x[:, :1],
}
SHAPES = {  # x, weight
    "one_channel": ((2, 1, 5, 5), (3, 1, 3, 3)),
    "one_channel_out": ((2, 4, 5, 5), (1, 4, 3, 3)),
    "one_pixel": ((2, 4, 1, 1), (3, 4, 1, 1)),
    "one_pixel_out": ((2, 4, 3, 3), (3, 4, 3, 3)),
    "one_tap": ((2, 4, 5, 5), (3, 4, 1, 1)),
    "one_image": ((1, 4, 5, 5), (3, 4, 3, 3)),
    "one_of_all": ((2, 1, 1, 1), (1, 1, 1, 1)),
}


def agree(x, w):
    """In numbers, and in strides with what torch's convolution gives for the very operands."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y, expected = conv2d_relu(x, w), F.conv2d(x, w).relu_()
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    others = torch.autograd.grad(expected, (x, w), dy)
    for one, other in zip((y, dx, dw), (expected, *others), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert y.stride() == expected.stride()
    assert dx.stride() == others[0].stride()
    assert dw.stride() == w.stride()


@pytest.mark.parametrize("weight", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_layout_of_views(view, weight, device, triton):
    x = VIEWS[view](torch.randn(2, 8, 9, 9, device=device).to(memory_format=LAST))
    agree(x, torch.randn(3, x.shape[1], 3, 3, device=device).to(memory_format=weight))


@pytest.mark.parametrize("last", [(), ("x",), ("w",), ("x", "w")], ids=str)
@pytest.mark.parametrize("case", SHAPES)
def test_layout_where_sides_of_one_leave_it_open(case, last, device, triton):
    formats = [LAST if name in last else torch.contiguous_format for name in ("x", "w")]
    agree(
        *(
            torch.randn(shape, device=device).to(memory_format=layout)
            for shape, layout in zip(SHAPES[case], formats, strict=True)
        )
    )


def test_opcheck_of_a_view(device):
    x = torch.randn(2, 8, 5, 5, device=device).to(memory_format=LAST)[:, ::2]
    w = torch.randn(3, 4, 3, 3, device=device)
    mode = "triton" if device.type == "cuda" else "auto"
    rest = ([1, 1], [1, 1], [1, 1], 1)
    y = torch.ops.fastalex.conv2d_relu(x, w, None, *rest, mode)
    torch.library.opcheck(torch.ops.fastalex.conv2d_relu.default, (x, w, None, *rest, mode))
    torch.library.opcheck(
        torch.ops.fastalex.conv2d_relu_backward.default,
        (torch.randn_like(y), y, x, w, *rest, [True, True, False], mode),
    )


@pytest.mark.parametrize(
    ("x", "w", "stride", "padding", "covered"),
    [
        ((3, 1 << 14, 1 << 14), (1, 3, 1, 1), 1, 0, True),
        ((8, 1 << 14, 1 << 14), (1, 8, 1, 1), 1, 0, False),
        ((3, 1 << 14, 1 << 14), (8, 3, 1, 1), 1, 0, False),  # the output
        ((3, 1 << 14, 1 << 14), (8, 3, 2, 2), 2, 0, True),
        ((1, 5, 5), (1, 1, 3, 3), 1, 1 << 15, False),  # what the padding adds
        ((1 << 16, 1, 1), ((1 << 15) - 1, 1 << 16, 1, 1), 1, 0, True),
        ((1, 1, 1), ((1 << 30) - 1, 1, 1, 1), 1, 0, True),
        ((1, 1, 1), (1 << 30, 1, 1, 1), 1, 0, False),  # the weights' gradients with the bias's
    ],
    ids=str,
)
def test_what_is_counted_in_32_bits(x, w, stride, padding, covered):
    maps, weights = torch.empty(1).expand(2, *x), torch.empty(1).expand(w)
    arguments = [stride] * 2, [padding] * 2, [1, 1]
    assert PUBLIC._covered(maps, weights, None, *arguments, 1, None) == covered


def test_a_choice_is_kept_for_torchs_switches(device, monkeypatch):
    keys = []

    def choose(op, direction, mode, candidates, trial, operands, settings):
        keys.append((direction, settings))
        return "aten"

    monkeypatch.setattr(_conv2d_ops, "choose", choose)
    x, w = torch.randn(1, 2, 4, 4, device=device), torch.randn(3, 2, 3, 3, device=device)
    rest = ([1, 1], [0, 0], [1, 1], 1)

    def run():
        y = torch.ops.fastalex.conv2d_relu(x, w, None, *rest, "auto")
        torch.ops.fastalex.conv2d_relu_backward(y, y, x, w, *rest, [True, True, False], "auto")

    for on in (None, "benchmark", "deterministic", "algorithms"):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", on == "benchmark")
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", on == "deterministic")
        torch.use_deterministic_algorithms(on == "algorithms", warn_only=True)  # a fixture ends it
        run()
    assert len(set(keys)) == len(keys) == 4 * 3
