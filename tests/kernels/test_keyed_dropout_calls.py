"""keyed_dropout as it is called: at its ends, refused, differentiated, compiled."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import keyed_dropout

ROOT = Path(__file__).parents[2]


def key_on(device):
    return torch.tensor([0x1234_5678_9ABC_DEF0, 5], device=device)


@pytest.mark.usefixtures("implementation")
def test_the_two_ends_and_nothing(device):
    x, key = torch.randn(3, 50, device=device), key_on(device)
    for inverted in (True, False):
        assert torch.equal(keyed_dropout(x, key, 0.0, inverted=inverted), x)
        assert torch.equal(keyed_dropout(x, key, 0.0, relu=True, inverted=inverted), F.relu(x))
        assert not keyed_dropout(x, key, 1.0, inverted=inverted).any()
    assert keyed_dropout(x[:0], key, first_row=3).shape == (0, 50)
    assert keyed_dropout(x[:, :0], key).shape == (3, 0)


@pytest.mark.usefixtures("implementation")
def test_no_generator_is_asked(device):
    before = torch.get_rng_state()
    keyed_dropout(torch.ones(3, 5, device=device), key_on(device))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradcheck():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def op(x):
        return keyed_dropout(x, key_on("cpu"), 0.3, relu=True)

    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5}, r"`p` must be between 0 and 1, got 1.5"),
        ({"p": math.nan}, r"`p` must be between 0 and 1, got nan"),
        ({"input": torch.ones(3)}, r"`input` must be \(rows, units...\), got shape \(3,\)"),
        ({"key": torch.ones(1, dtype=torch.int64)}, r"`key` must be .* got \(1,\) torch.int64"),
        ({"key": torch.ones(2)}, r"`key` must be .* got \(2,\) torch.float32 on cpu"),
        ({"key": torch.ones(2, device="meta").long()}, r"`key` must be .*'s cpu; got .* on meta"),
        ({"layer": -1}, r"`layer` must be from 0 to 2\^31 - 1, got -1"),
        ({"first_row": -4}, r"`first_row` must be from 0 to 2\^31 - 1, got -4"),
        ({"first_unit": 2**31}, r"`first_unit` must be from 0 to 2\^31 - 1, got 2147483648"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^keyed_dropout: {message}"):
        keyed_dropout(**{"input": torch.ones(3, 4), "key": key_on("cpu"), **arguments})


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's compiler")
def test_compiled_for_a_cpu_it_is_the_same_to_the_bit():
    """In one graph for all steps."""
    x, key = torch.randn(33, 530), key_on("cpu")

    def op(x, key):
        return keyed_dropout(x, key, 0.3, relu=True, layer=1, first_row=5, first_unit=3)

    def run(function):
        leaf = x.clone().requires_grad_()
        y = function(leaf, key)
        return y.detach(), *torch.autograd.grad(y.square().sum(), leaf)

    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True)
    run(compiled)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(2):
            key[1] += 1
            for got, expected in zip(run(compiled), run(op), strict=True):
                assert torch.equal(got, expected)


KINDS = """
import torch
from _compile_build import jobs
from _compile_fake import TARGETS
from _compile_record import Case, record
from fastalex import kernels

def call():
    key = torch.empty(2, dtype=torch.int64, device="cuda")
    for layer, row, unit in ((0, 0, 0), (1, 1, 1), (2, 16, 4096), (3, 70, 48)):
        x = torch.empty(128, 4096, device="cuda")
        kernels.keyed_dropout(x, key, layer=layer, first_row=row, first_unit=unit)

target = TARGETS["sm_90"]
launches = record(target, [Case("", torch.float32, call)])
print(len(launches), len(jobs(target, launches)))
"""


def test_another_layer_or_place_is_no_other_compilation():
    """Triton makes another kernel for an integer of 1 or of a multiple of 16, where it may."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench")])}
    command = [sys.executable, "-c", KINDS]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.stdout.split() == ["8", "2"], ran.stderr
