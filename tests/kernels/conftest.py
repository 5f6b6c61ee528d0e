"""What the op tests share: operands in every layout, the tolerance rule, outputs born as NaN.

Every test runs on the GPU where there is one, and else on the CPU, Triton in its interpreter.
"""

import contextlib
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from fastalex.kernels import _choice, _choice_file, _launch

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


@pytest.fixture(autouse=True)
def _interpreted_infinities_are_silent():
    """Triton's interpreter computes with NumPy, which warns where a GPU says nothing."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True, scope="session")
def _interpreted_loops_may_end_where_the_kernel_says():
    """Triton 3.6 makes a loop's bound by int() of an array of one, which NumPy 2.5 refuses."""
    if not _launch.INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patch)
        yield


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def triton():
    """The test runs with `use("triton")`."""
    with _launch.use("triton"):
        yield


@pytest.fixture(params=["aten", "triton"])
def implementation(request):
    """The test runs twice: with `use("aten")` and with `use("triton")`."""
    with _launch.use(request.param):
        yield request.param


@pytest.fixture
def exact_float32():
    """Convolutions of float32 are not done in TF32, as torch allows by default."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def opchecks(device):
    """opchecks(mode): torch.library.opcheck's tests that an op can pass in that mode."""

    def checks(mode):
        some = ["test_schema", "test_autograd_registration", "test_faketensor"]
        interpreted = mode == "triton" and device.type == "cpu"  # cannot run what torch traces
        return some if interpreted else [*some, "test_aot_dispatch_dynamic"]

    return checks


@pytest.fixture
def by_towers():
    """by_towers(x, size, alpha, beta, k, groups): torch's response norm on each tower by itself."""

    def run(x, size, alpha, beta, k, groups):
        towers = x.chunk(groups, dim=1)
        return torch.cat([F.local_response_norm(t, size, alpha, beta, k) for t in towers], dim=1)

    return run


@pytest.fixture(params=LAYOUTS)
def laid_out(request):
    return LAYOUTS[request.param]


@pytest.fixture
def check_accuracy(device):
    """No worse than twice what plain float32, rounded to the dtype, errs against float64.

    check_accuracy(op, reference, operands, dtype, layout=...): output and every gradient of `op` on
    the device, in `dtype`, against `reference` on the CPU.
    """
    return partial(_check_accuracy, device)


def _check_accuracy(device, op, reference, operands, dtype, layout=lambda x: x):
    operands = [operand.to(dtype) for operand in operands]
    dy = torch.randn(reference(*[o.double() for o in operands]).shape).to(dtype)

    def run(function, as_dtype, where):
        leaves = [layout(o.to(where, as_dtype)).detach().requires_grad_() for o in operands]
        y = function(*leaves)
        results = [y.detach(), *torch.autograd.grad(y, leaves, dy.to(where, as_dtype))]
        return [result.cpu() for result in results]

    exact = run(reference, torch.float64, "cpu")
    float32 = run(reference, torch.float32, "cpu")
    got = run(op, dtype, device)
    for name, g, f, e in zip(
        ["y", *(f"d{i}" for i in range(9))], got, float32, exact, strict=False
    ):
        assert g.dtype == dtype, name
        assert g.shape == e.shape, name
        assert_as_accurate(name, g, f, e)


def assert_as_accurate(name, got, float32, exact):
    """The rule itself, for one tensor (CPU)."""
    if exact.numel() == 0:
        return
    error = (got.double() - exact).abs().max()
    floor = torch.finfo(got.dtype).eps * exact.abs().max()
    allowed = 2 * (float32.to(got.dtype).double() - exact).abs().max() + floor
    assert error <= allowed, f"{name} {got.dtype}: max error {error:.2e}, allowed {allowed:.2e}"


class FakeGPU:
    """A GPU called "Some GPU" on which a candidate takes the milliseconds that `times` says."""

    candidates = "aten", "triton", "triton wide"

    def __init__(self):
        self.times = dict(zip(self.candidates, (1.0, 0.5, 0.8), strict=True))
        self.timed = []  # candidates, as the clock saw them
        self.entered = []  # devices made the current one

    def tensor(self, *shape, dtype=torch.bfloat16, index=0):
        """A fake one; without a GPU to be found, which it would set up."""
        with mock.patch.object(torch.cuda, "is_available", return_value=False), FakeTensorMode():
            return torch.empty(shape, device=f"cuda:{index}", dtype=dtype)

    def choose(self, x, mode="auto", settings=(), candidates=candidates):
        def trial(name, *_):
            return name

        return _choice.choose("op", "forward", mode, candidates, trial, (x, None), settings)

    def bench(self, call, **_):
        name = call()
        self.timed.append(name)
        if isinstance(self.times[name], Exception):
            raise self.times[name]
        return self.times[name]

    def device(self, device):
        self.entered.append(device)
        return contextlib.nullcontext()

    def forget(self):
        """As a new process would start."""
        _choice._made.clear()
        _choice._winners.clear()
        _choice_file._read.clear()


def _like_on_the_cpu(x, size):
    return None if x is None else torch.empty_strided(*size, dtype=x.dtype)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    gpu = FakeGPU()
    monkeypatch.setenv("FASTALEX_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "device", gpu.device)
    monkeypatch.setattr("triton.testing.do_bench", gpu.bench)
    monkeypatch.setattr(
        _choice,
        "_like",
        lambda x, size: None if x is None else torch.empty_strided(*size, dtype=x.dtype),
    )
    gpu.forget()
    yield gpu
    gpu.forget()
