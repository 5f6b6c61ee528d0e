"""The triton_ops of local_response_norm_max_pool2d: schemas, fake tensors, torch.compile."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import local_response_norm_max_pool2d

MODULE = importlib.import_module("fastalex.kernels.local_response_norm_max_pool2d")
SETTINGS = 0.2, 0.75, 2.0, 2, True


@pytest.mark.parametrize("relu", [False, True])
def test_where_the_choice_is_aten_the_gradient_is_atens(relu, device, by_towers):
    x = torch.randn(2, 8, 5, 7, device=device)
    dy = torch.randn(2, 8, 2, 3, device=device)
    y, places = MODULE._response_pool(x, *SETTINGS[:4], relu, True, "aten")
    assert places.dtype == torch.int64
    dx = MODULE._response_pool_backward(dy, x, places, *SETTINGS[:4], relu)
    leaf = x.requires_grad_()
    normalized = by_towers(F.relu(leaf) if relu else leaf, 5, *SETTINGS[:4])
    expected = F.max_pool2d(normalized, 3, 2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dx, torch.autograd.grad(expected, leaf, dy)[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_ops_are_well_formed(mode, layout, device, opchecks):
    x = torch.randn(1, 8, 3, 5, device=device).to(memory_format=layout)
    for trained in (False, True):
        arguments = x, *SETTINGS, trained, mode
        torch.library.opcheck(MODULE._response_pool, arguments, test_utils=opchecks(mode))
    y, places = MODULE._response_pool(x, *SETTINGS, True, mode)
    arguments = y, x, places, *SETTINGS
    torch.library.opcheck(MODULE._response_pool_backward, arguments, test_utils=opchecks(mode))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_whole_and_agrees(dtype, device, monkeypatch):
    """The way that a GPU's tensors go; on a CPU the ops then choose ATen."""
    monkeypatch.setattr(MODULE, "route", lambda *_: "auto")
    x = torch.randn(2, 8, 5, 7, dtype=dtype, device=device)

    def run(op):
        leaf = x.clone().requires_grad_()
        y = op(leaf, 5, 0.3, 0.75, 1.0, 3, 2, groups=2, relu=True)
        with torch.no_grad():
            plain = op(leaf, 5, 0.3, 0.75, 1.0, 3, 2, groups=2, relu=True)
        return y.detach(), plain, *torch.autograd.grad(y, leaf, torch.ones_like(y))

    torch.compiler.reset()
    compiled = torch.compile(local_response_norm_max_pool2d, fullgraph=True, backend="aot_eager")
    expected = run(local_response_norm_max_pool2d)
    assert expected[2].count_nonzero() > 20
    for got, e in zip(run(compiled), expected, strict=True):
        torch.testing.assert_close(got, e)
