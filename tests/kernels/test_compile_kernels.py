"""Every kernel, compiled for GPUs that are not here; and that the tool which does it sees faults.

In processes of their own, without TRITON_INTERPRET: under it kernels are not compiled at all.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = os.pathsep.join(map(str, (ROOT, BENCH, Path(__file__).parent)))
    environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_kernel_compiles_for_every_target():
    """No spills, wgmma in the matrix kernels, shared memory that fits, the documented figures."""
    ran = python(BENCH / "compile_kernels.py", "--quick", "--check", ROOT / "docs" / "kernels.md")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_every_launch_compiles_for_every_target():
    ran = python(BENCH / "compile_kernels.py", "--check", ROOT / "docs" / "kernels.md")
    assert ran.returncode == 0, ran.stdout + ran.stderr


EXAMINE = """
import torch
import planted
from planted import ops
from _compile_fake import TARGETS
from _compile_build import build, jobs
from _compile_record import Case, record
from compile_kernels import faults_of

def cases():
    half = torch.bfloat16
    def operand(*shape):
        return torch.empty(*shape, dtype=half, device="cuda", requires_grad=True)
    yield Case("copy", half, lambda: ops.copy(operand(1 << 14), 1 << 14))
    yield Case("odd", half, lambda: ops.copy(operand(1 << 14).as_strided((99,), (1,), 1), 99))
    yield Case("product", half, lambda: ops.product(operand(256, 512), operand(256, 512)))
    yield Case("productless", half, lambda: ops.productless(operand(64)))
    yield Case("broken", half, lambda: ops.broken(operand(8)))

targets = [TARGETS["sm_90"], TARGETS["gfx942"]]
launches = {target.name: record(target, cases(), planted) for target in targets}
todo = [job for target in targets for job in jobs(target, launches[target.name])]
results = build(todo, lambda *_: None)
for job, code in results:
    print("made", job.target.name, job.launch.kernel, job.launch.candidate, len(job.served))
for fault in faults_of(results, launches, planted):
    print("fault", fault)
"""


@pytest.fixture(scope="module")
def examined() -> list[str]:
    """What the tool says of the package `planted`, beside this file."""
    ran = python("-c", EXAMINE)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.parametrize(
    "fault",
    [
        r"planted.ops._forgotten_kernel: never launched, on no target",
        r"_spilling_kernel \(.*\) on sm_90, copy torch.bfloat16: \d+ bytes spilled",
        r"_spilling_kernel \(.*\) on gfx942, copy torch.bfloat16: \d+ registers spilled",
        r"_product_kernel \(triton 16x16x16\) on sm_90, .*: no wgmma",
        r"_product_kernel \(triton 128x128x64 9\) on sm_90, .*: 294912 bytes of shared memory, .*",
        r"_broken_kernel \(.*\) on sm_90, .*: CompilationError: .* must be a power of 2",
        r"_broken_kernel \(.*\) on gfx942, .*: CompilationError: .* must be a power of 2",
        r"productless forward triton 64x64: no tl.dot in what it launches",
    ],
)
def test_a_fault_is_seen(examined, fault):
    assert sum(bool(re.fullmatch(f"fault {fault}", line)) for line in examined) == 1


def test_nothing_else_is_a_fault(examined):
    assert sum(line.startswith("fault") for line in examined) == 8


def test_what_triton_tells_apart_is_compiled_apart(examined):
    """16 divides neither the second copy's size nor its place; its backward is the first one's."""
    assert examined.count("made sm_90 _good_kernel  1") == 2
    assert examined.count("made sm_90 _spilling_kernel  2") == 1


def test_a_candidate_is_compiled_where_the_op_would_take_it(examined):
    assert "made sm_90 _product_kernel triton 16x16x16 1" in examined
    assert "made gfx942 _product_kernel triton 128x128x64 1" in examined
    assert "made gfx942 _product_kernel triton 16x16x16 1" not in examined


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("_compile_table")


def test_a_wrong_table_is_a_fault(table, tmp_path, monkeypatch):
    """A figure changed, a row left out; but not another triton's table."""
    from _compile_build import Code, Job
    from _compile_fake import TARGETS
    from _compile_record import Launch

    jobs = [
        Job(target, Launch("m", name, "", "", "", "64x64", "c", torch.float16, (), {}))
        for name in ("_a_kernel", "_a_kernel", "_b_kernel")
        for target in TARGETS.values()
    ]
    results = [(job, Code(50 + n, 8, 98304, True, 4, 8, 640)) for n, job in enumerate(jobs)]
    path = tmp_path / "kernels.md"
    path.write_text(f"before\n{table.BEGIN}{table.END}\nafter\n")
    assert len(table.differences(path, results, jobs)) == 1
    table.write(path, results)
    table.write(path, results)
    text = path.read_text()
    assert re.fullmatch("before\n<.*>\nafter\n", text, re.DOTALL)
    assert text.count("| `a_kernel` | fp16 | 64x64 | 4 | 55 / 96 / 8 spilled |") == 1
    assert table.differences(path, results, jobs) == []
    assert table.differences(path, results[:8], jobs) == []

    def changed(old, new):
        path.write_text(text.replace(old, new, 1))
        return table.differences(path, results, jobs)

    (line,) = changed("| 55 / 96", "| 56 / 96")
    assert line.startswith("kernels.md, `a_kernel` fp16 64x64 4, sm_80: '56 / 96")
    assert len(changed("| 640 |", "| 641 |")) == 1
    assert len(changed("| `b_kernel`", "| `c_kernel`")) == len(table.HEAD)
    path.write_text(text.replace("| 55 / 96", "| 40 / 96"))
    assert len(table.differences(path, results[:1], jobs)) == 1  # one launch of two, but above
    monkeypatch.setattr("triton.__version__", "1.0")
    assert table.differences(path, results, jobs) == []
