"""`use`, and what a call's mode becomes for each device, dtype and set of arguments."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastalex import kernels
from fastalex.kernels import _launch


def on_gpu(*shape, dtype=torch.float32):
    with FakeTensorMode():
        return torch.empty(shape, device="cuda", dtype=dtype)


CPU, GPU = torch.ones(2, 8, 3, 3), on_gpu(2, 8, 3, 3)


@pytest.mark.parametrize("mode", ["auto", "triton", "aten"])
def test_use_sets_the_mode_and_a_block_puts_it_back(mode):
    with kernels.use("auto"):
        with kernels.use(mode):
            assert _launch.route("op", GPU, covered=True) == mode
        assert _launch.route("op", GPU, covered=True) == "auto"
        kernels.use(mode)
        assert _launch.route("op", GPU, covered=True) == mode
    assert _launch.route("op", GPU, covered=True) == "auto"


def test_a_block_that_fails_puts_the_mode_back():
    with pytest.raises(KeyError), kernels.use("aten"):
        raise KeyError
    assert _launch.route("op", GPU, covered=True) == "auto"


def test_no_such_mode():
    with pytest.raises(ValueError, match="one of auto, triton, aten; got 'cudnn'"):
        kernels.use("cudnn")
    assert _launch.route("op", GPU, covered=True) == "auto"


@pytest.mark.parametrize(
    ("input", "covered"),
    [
        (GPU, False),
        (on_gpu(2, 8, 3, 3, dtype=torch.float64), True),
        (on_gpu(2, 8, 3, 3, dtype=torch.int32), True),
        (on_gpu(0, 8, 3, 3), True),
    ],
    ids=["arguments", "float64", "integers", "empty"],
)
def test_what_no_kernel_covers_is_atens_in_every_mode(input, covered):
    for mode in ("auto", "triton"):
        with kernels.use(mode):
            assert _launch.route("op", input, covered) == "aten"


def test_cpu_tensors_go_to_the_interpreter_on_request_only():
    assert _launch.route("op", CPU, covered=True) == "aten"
    assert not _launch.may_fuse(CPU)
    assert _launch.may_fuse(GPU)
    with kernels.use("aten"):
        assert not _launch.may_fuse(GPU)
    if _launch.INTERPRETED:
        with kernels.use("triton"):
            assert _launch.route("op", CPU, covered=True) == "triton"
            assert _launch.may_fuse(CPU)


def test_triton_on_the_cpu_without_its_interpreter_is_an_error():
    script = """
import torch
from fastalex import kernels
with kernels.use("triton"):
    kernels.max_pool2d(torch.ones(1, 1, 3, 3), 2)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: max_pool2d: use('triton') on CPU tensors needs")
    assert "TRITON_INTERPRET=1" in last


@pytest.mark.skipif(not _launch.INTERPRETED, reason="kernels are compiled here")
def test_the_interpreter_refuses_to_be_compiled():
    """A graph without the kernel would return memory that nobody wrote."""
    torch.compiler.reset()
    compiled = torch.compile(lambda x: kernels.max_pool2d(x, 3, 2), backend="aot_eager")
    compiled(torch.ones(1, 8, 5, 5))  # another mode is traced anew
    with kernels.use("triton"), pytest.raises(Exception, match="cannot trace Triton's interpreter"):
        compiled(torch.ones(1, 8, 5, 5))


OPS = {
    "conv2d_relu": lambda x: kernels.conv2d_relu(x, torch.ones(2, 8, 1, 1)),
    "local_response_norm": lambda x: kernels.local_response_norm(x, 5),
    "max_pool2d": lambda x: kernels.max_pool2d(x, 2),
    "local_response_norm_max_pool2d": lambda x: kernels.local_response_norm_max_pool2d(
        x, 5, 1e-4, 0.75, 1.0, 3, 2
    ),
    "relu_dropout": lambda x: kernels.relu_dropout(x, 0.5),
    "keyed_dropout": lambda x: kernels.keyed_dropout(x, torch.tensor([1, 2])),
    "images": lambda x: kernels.images(x, torch.ones(3)),
}


@pytest.mark.parametrize("op", OPS)
def test_what_is_no_tensor_is_named(op):
    with pytest.raises(TypeError, match=rf"^{op}: `input` must be a torch.Tensor, got list$"):
        OPS[op]([1.0])


@pytest.mark.parametrize("op", OPS)
def test_somebodys_own_kind_of_tensor_is_asked_first(op):
    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return func

    assert OPS[op](torch.ones(1, 8, 3, 3).as_subclass(Own)) is getattr(kernels, op)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.skipif(not _launch.INTERPRETED, reason="the interpreter stands for the GPU")
@pytest.mark.parametrize("op", ["max_pool2d", "local_response_norm_max_pool2d"])
def test_transforms_are_atens_and_forward_mode_is_no_wrong_number(op):
    x = torch.rand(1, 8, 3, 3)
    with kernels.use("triton"):
        _, tangent = torch.func.jvp(
            lambda x: kernels.max_pool2d(x, 2), (x,), (torch.ones(1, 8, 3, 3),)
        )
        assert (tangent == 1).all()
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(RuntimeError, match="jvp"):
                OPS[op](dual)


@pytest.mark.skipif(not _launch.INTERPRETED, reason="the interpreter stands for the GPU")
@pytest.mark.parametrize("op", [name for name in OPS if name != "images"])
def test_second_derivatives_are_refused(op):
    x = torch.rand(1, 8, 3, 3, requires_grad=True)
    with kernels.use("triton"):
        (dx,) = torch.autograd.grad(OPS[op](x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            dx.square().sum().backward()


def test_a_kernel_is_launched_on_the_device_of_its_data(monkeypatch):
    happened = []

    @contextlib.contextmanager
    def device_of(x):
        happened.append(("enter", x))
        yield
        happened.append(("leave", x))

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: happened.append(("launch", grid, args, options))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x, y = torch.ones(2), torch.ones(3)
    _launch.wrap_triton(Kernel())[(4,)](7, x, y, BLOCK=8)
    assert [what for what, *_ in happened] == ["enter", "launch", "leave"]
    assert happened[0][1] is happened[2][1] is x
    assert happened[1][1] == (4,)
    assert happened[1][2][1] is x
    assert happened[1][3] == {"BLOCK": 8}


def test_use_again():
    mode = kernels.use("aten")
    kernels.use("auto")
    with mode:
        assert _launch.route("op", GPU, covered=True) == "aten"
    assert _launch.route("op", GPU, covered=True) == "auto"
    assert repr(mode) == "use('aten')"
