"""What the op tests share: operands in every layout, the tolerance rule, outputs born as NaN."""

import pytest
import torch

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "every_other_row": lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.fixture(autouse=True)
def _same_numbers_and_uninitialized_memory_is_nan():
    """An element that nobody wrote fails its comparison."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=LAYOUTS)
def laid_out(request):
    return LAYOUTS[request.param]


@pytest.fixture
def check_accuracy():
    """No worse than twice what plain float32, rounded to the dtype, errs against float64."""
    return _check_accuracy


def _check_accuracy(op, reference, operands, dtype, layout=lambda x: x):
    """`op` in `dtype`, against `reference` in float64 and float32: output and every gradient."""
    operands = [operand.to(dtype) for operand in operands]
    dy = torch.randn(reference(*[o.double() for o in operands]).shape).to(dtype)

    def run(function, as_dtype):
        leaves = [layout(o.to(as_dtype)).detach().requires_grad_() for o in operands]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(as_dtype))]

    exact, float32, got = (
        run(reference, torch.float64),
        run(reference, torch.float32),
        run(op, dtype),
    )
    for name, g, f, e in zip(
        ["y", *(f"d{i}" for i in range(9))], got, float32, exact, strict=False
    ):
        assert g.dtype == dtype, name
        assert g.shape == e.shape, name
        error = (g.double() - e).abs().max()
        floor = torch.finfo(dtype).eps * e.abs().max()
        allowed = 2 * (f.to(dtype).double() - e).abs().max() + floor
        assert error <= allowed, f"{name} {dtype}: max error {error:.2e}, allowed {allowed:.2e}"
