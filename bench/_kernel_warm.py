"""Compiles what the kernel benchmarks will run, many cases at a time, into the compilers' caches.

In processes of their own and before anything is timed: one after the other, the compilations would
take longer than the measurements. Nothing is timed here, and no choice is remembered.
"""

import contextlib
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

PROCESSES = 6
"""As many as the GPU's memory has room for, at batch 1024."""


def warm(names: list[str], seconds: float) -> None:
    """The cases of these names; what has not begun after so long is compiled as it is measured."""
    # one cache for all: inductor would send what is compiled after it is loaded to another
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(PROCESSES, context, initializer=_start, initargs=(cache,)) as pool,
    ):
        futures = [pool.submit(_run_once, name) for name in names]
        done, _ = wait(futures, timeout=seconds)
        pool.shutdown(cancel_futures=True)
        if broken := next((f.exception() for f in done if f.exception()), None):
            print(f"the rest is compiled as it is measured: {broken}")


def _start(cache: str) -> None:
    os.environ["FASTALEX_CACHE"] = cache
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    from fastalex.kernels import _choice

    def untimed(op, candidate, trial, operands):
        with contextlib.suppress(Exception):
            trial(candidate, *operands)
        return 1.0

    _choice._milliseconds = untimed


def _run_once(name: str) -> None:
    """What fails here fails again, and is told, where it is measured."""
    import torch
    from _kernel_cases import CASES, work_of

    torch.cuda.empty_cache()
    case = next(case for case in CASES if case.name == name)
    with contextlib.suppress(Exception):
        work = work_of(case)
        for which in case.passes:
            for provider in work.names(which):
                with contextlib.suppress(Exception):
                    setup, call = work.prepare(provider, which)
                    call(setup())
