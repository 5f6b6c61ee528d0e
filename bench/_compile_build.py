"""Recorded launches to machine code, by Triton's own path, with no GPU; what that code needs.

For compile_kernels.py. `JITFunction.warmup` specialises the arguments and compiles as a launch
would; only the driver, which says what GPU there is, is ours.
"""

import contextlib
import io
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import triton
from _compile_fake import TARGETS, Target
from _compile_record import Launch
from triton.runtime import driver


@dataclass(frozen=True)
class Code:
    """What one compiled kernel needs of its target."""

    registers: int = 0
    """A thread's; on AMD its vector registers, accumulation registers among them."""
    spilled: int = 0
    """Bytes stored to and loaded from local memory by a thread; on AMD registers."""
    shared: int = 0
    """Bytes of shared memory a block."""
    has_dot: bool = False
    """There is a `tl.dot` in it: a matrix kernel."""
    wgmma: int = 0
    """Warp-group matrix instructions (sm_90)."""
    tcgen05: int = 0
    """Matrix instructions of sm_100."""
    instructions: int = 0
    """Machine instructions (sm_90)."""
    error: str = ""


@dataclass(frozen=True)
class Job:
    """One kernel to compile for one target, and the launches that it serves."""

    target: Target
    launch: Launch
    served: list[Launch] = field(default_factory=list)


class _Driver:
    """Triton's driver for a GPU that is not here; each target is a device of its own."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target.gpu

    def get_current_device(self) -> str:
        return self.target.name

    def get_current_stream(self, device: object) -> int:
        return 0


def warm_up(launch: Launch, target: Target) -> Any:
    driver.set_active(_Driver(target))
    return launch.function().warmup(*launch.arguments, grid=(1,), **launch.keywords)


def jobs(target: Target, launches: list[Launch]) -> list[Job]:
    """The launches that Triton tells apart: by type, alignment, constants and options."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default; where unset, 3.9 warns
    found: dict[tuple[str, str, str], Job] = {}
    keys: list[str] = []

    def note(*, key: str, **_: Any) -> bool:
        keys.append(key)
        return True  # compiled by somebody else: do not

    triton.knobs.runtime.jit_cache_hook = note
    try:
        for launch in launches:
            warm_up(launch, target)
            key = (launch.module, launch.kernel, keys.pop())
            found.setdefault(key, Job(target, launch)).served.append(launch)
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return list(found.values())


def build(todo: list[Job], progress: Callable[[int, int, Job], None]) -> list[tuple[Job, Code]]:
    """Compiled on every core, into a cache that starts empty, so that no stale code is read."""
    triton.knobs.nvidia.dump_ptxas_log = True
    codes: dict[int, Code] = {}
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        for number, code in _on_every_core(todo):
            codes[number] = code
            progress(len(codes), len(todo), todo[number])
    return [(job, codes[number]) for number, job in enumerate(todo)]


def _on_every_core(todo: list[Job]) -> Iterator[tuple[int, Code]]:
    crashed = []
    with _pool(len(os.sched_getaffinity(0))) as pool:
        futures = {pool.submit(_compiled, *_sent(job)): i for i, job in enumerate(todo)}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                crashed.append(futures[future])
    for number in crashed:  # one of them ended its process, and the others with it
        with _pool(1) as pool:
            try:
                yield number, pool.submit(_compiled, *_sent(todo[number])).result()
            except BrokenProcessPool:
                yield number, Code(error="the compiler ended its process")


def _pool(size: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(size, get_context("fork"))


def _sent(job: Job) -> tuple[str, Launch]:
    return job.target.name, job.launch


def _compiled(target_name: str, launch: Launch) -> Code:
    target, log = TARGETS[target_name], io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            made = warm_up(launch, target)
        has_dot = "tt.dot" in made.asm["ttir"]
        if target.is_amd:
            return _amd(made, has_dot)
        return _nvidia(made, has_dot, log.getvalue(), disassemble=target.name == "sm_90")
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Code(error=f"{type(error).__name__}: {lines[0]} {lines[-1] if lines[1:] else ''}")


def _amd(made: Any, has_dot: bool) -> Code:
    def metadata(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s+(\d+)", made.asm["amdgcn"])))

    spilled = metadata("vgpr_spill_count") + metadata("sgpr_spill_count")
    return Code(metadata("vgpr_count"), spilled, made.metadata.shared, has_dot)


def _nvidia(made: Any, has_dot: bool, log: str, disassemble: bool) -> Code:
    registers = max(map(int, re.findall(r"Used (\d+) registers", log)))
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", log)))
    code = _disassembled(made.asm["cubin"]) if disassemble else []
    wgmma = sum("HGMMA" in line for line in code)
    tcgen05 = made.asm["ptx"].count("tcgen05.mma.")
    return Code(registers, spilled, made.metadata.shared, has_dot, wgmma, tcgen05, len(code))


def _disassembled(cubin: bytes) -> list[str]:
    """A line for each instruction, without the padding after the last."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)]
    return [line for line in lines if not re.search(r"\bNOP\b", line)]
