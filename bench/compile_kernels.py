"""Compiles every Triton kernel of fastalex, as AlexNet launches it, for GPUs that are not here.

Says what each needs of a GPU (registers, shared memory, instructions) and finds what would be slow
or fail there: exits 1 where

- a kernel does not compile, or wants more shared memory than a block can have;
- a memory-bound kernel spills registers to memory, or a matrix kernel in half precision on sm_90;
- a matrix kernel in float16 or bfloat16 has no wgmma in its sm_90 code;
- a kernel of the package was never launched, so that nothing is known about it.

The launches are not listed anywhere: the networks are run on tensors without memory, in training,
with every candidate of every op, and what the ops launch is written down. No GPU is needed.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import _compile_table
import torch
import triton
from _compile_build import Code, Job, build, jobs
from _compile_cases import cases
from _compile_fake import TARGETS
from _compile_record import Launch, defined_kernels, record

from fastalex import kernels

HALF = (torch.float16, torch.bfloat16)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, default=list(TARGETS),
        help="GPUs to compile for (default: all of them)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="one launch of each kernel for each target, and more for sm_90: a minute on two cores",
    )  # fmt: skip
    parser.add_argument(
        "--table", type=Path, metavar="FILE",
        help="write the table between its marks in this file (docs/kernels.md); whole runs only",
    )  # fmt: skip
    parser.add_argument(
        "--check", type=Path, metavar="FILE",
        help="a fault, too: the table in this file says something else, where it was made with the "
        "triton installed here",
    )  # fmt: skip
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set, so that nothing is compiled; unset it")
    if options.table and (options.quick or len(options.target) < len(TARGETS)):
        parser.error("--table wants everything: leave out --quick and --target")
    calls = cases()
    launches = {name: record(target, calls) for name, target in TARGETS.items()}
    every_job = [job for name in options.target for job in jobs(TARGETS[name], launches[name])]
    results = build(_quick(every_job) if options.quick else every_job, _progress)
    print(f"triton {triton.__version__}; registers / KiB of shared memory / spilled\n")
    print(_compile_table.plain(results))
    faults = faults_of(results, launches)
    if options.check:
        faults += _compile_table.differences(options.check, results, every_job)
    if options.table:
        _compile_table.write(options.table, results)
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{len(results)} of {len(every_job)} compiled, {len(faults)} faults")
    return 1 if faults else 0


def _quick(every_job: list[Job]) -> list[Job]:
    """One launch of each kernel for each target; for sm_90 all of the paper's that move memory.

    Of a matrix kernel, one launch for each pass and for each way to bring the operands.
    """
    chosen, seen = [], set()
    for job in every_job:
        launch = job.launch
        form = (job.target.name, launch.module, launch.kernel)
        if launch.tiling:
            form += (launch.direction, launch.tiling.startswith("tma"))
        of_paper = launch.case in ("paper", "optimizer", "input", "dropout")
        of_paper &= launch.dtype == torch.bfloat16
        all_of_them = of_paper and not launch.tiling and job.target.name == "sm_90"
        if all_of_them or form not in seen:
            seen.add(form)
            chosen.append(job)
    return chosen


def faults_of(
    results: list[tuple[Job, Code]],
    launches: dict[str, list[Launch]],
    package: ModuleType = kernels,
) -> list[str]:
    """One line for each; `launches` are all that were recorded, by target."""
    every_launch = [launch for recorded in launches.values() for launch in recorded]
    missing = sorted(defined_kernels(package) - {(x.module, x.kernel) for x in every_launch})
    faults = [f"{module}.{name}: never launched, on no target" for module, name in missing]
    faults += _without_product(every_launch)
    for job, code in results:
        faults += [f"{_named(job)}: {fault}" for fault in _faults_of_one(job, code)]
    return faults


def _without_product(launches: Iterable[Launch]) -> list[str]:
    """Candidates named after a tiling (128x64x32) that launch no matrix kernel."""
    tiled, multiplying = set(), set()
    for launch in launches:
        choice = f"{launch.op} {launch.direction} {launch.candidate}"
        if re.search(r"\dx\d", launch.candidate):
            tiled.add(choice)
        if launch.tiling:
            multiplying.add(choice)
    return [f"{choice}: no tl.dot in what it launches" for choice in sorted(tiled - multiplying)]


def _faults_of_one(job: Job, code: Code) -> list[str]:
    if code.error:
        return [code.error]
    faults = []
    if job.launch.tiling and not code.has_dot:
        faults.append("its tl.dot became no matrix product")
    if code.shared > job.target.shared:
        faults.append(f"{code.shared} bytes of shared memory, of {job.target.shared} there are")
    half = job.launch.dtype in HALF
    if code.spilled and (not code.has_dot or (half and job.target.name == "sm_90")):
        faults.append(f"{code.spilled} {'registers' if job.target.is_amd else 'bytes'} spilled")
    if code.has_dot and half and job.target.name == "sm_90" and not code.wgmma:
        faults.append("no wgmma")
    return faults


def _named(job: Job) -> str:
    launch = job.launch
    form = launch.candidate or "only form"
    return f"{launch.kernel} ({form}) on {job.target.name}, {launch.case} {launch.dtype}"


def _progress(done: int, total: int, job: Job) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done}/{total} {job.launch.kernel:<60}", end=end, file=sys.stderr, flush=True)
    elif done % 50 == 0 or done == total:
        print(f"{done}/{total} compiled", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
