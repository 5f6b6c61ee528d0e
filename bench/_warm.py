"""Compiles what a part of the suite will run, many cases at a time, into the compilers' caches.

On a GPU, in processes of their own and before anything is timed: one after the other, the
compilations would take longer than the measurements. Nothing is timed here, and no choice is
remembered. The seconds that a case took, on a core beside others, are kept: a first call's.
"""

import contextlib
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

PROCESSES = 6
"""As many as the GPU's memory has room for, at batch 1024."""


def warm(part: str, names: list[str], seconds: float) -> dict[str, float]:
    """Runs `names` once each; what has not begun after so long is compiled as it is measured.

    Args:
        part: ops, step or inference.
        names: of cases ("paper-conv1-128"), or of settings and providers ("paper-128 graph").
    Returns: the seconds that each took.
    """
    # one cache for all: inductor would send what is compiled after it is loaded to another
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(PROCESSES, context, initializer=_start, initargs=(cache,)) as pool,
    ):
        futures = {name: pool.submit(_RUN[part], name) for name in names}
        done, _ = wait(futures.values(), timeout=seconds)
        pool.shutdown(cancel_futures=True)
        if broken := next((f.exception() for f in done if f.exception()), None):
            print(f"the rest is compiled as it is measured: {broken}")
        return {name: f.result() for name, f in futures.items() if f in done and not f.exception()}


def _start(cache: str) -> None:
    os.environ["FASTALEX_CACHE"] = cache
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import torch

    from fastalex.kernels import _choice

    torch._dynamo.config.automatic_dynamic_shapes = False  # as in conftest.py

    def untimed(op, candidate, trial, operands):
        with contextlib.suppress(Exception):
            trial(candidate, *operands)
        return 1.0

    _choice._milliseconds = untimed


def _run_op(name: str) -> float:
    """What fails here fails again, and is told, where it is measured."""
    import torch
    from _kernel_cases import CASES, work_of

    torch.cuda.empty_cache()
    began = time.monotonic()
    case = next(case for case in CASES if case.name == name)
    with contextlib.suppress(Exception):
        work = work_of(case)
        for which in case.passes:
            for provider in work.names(which):
                with contextlib.suppress(Exception):
                    setup, call = work.prepare(provider, which)
                    call(setup())
    return time.monotonic() - began


def _run_step(name: str) -> float:
    import _step
    from _settings import GATE, TIMED

    setting, provider = _named(name)
    spent = 0.0
    for terms in (TIMED, GATE):
        began = time.monotonic()
        with contextlib.suppress(Exception):
            _step.providers(setting)[provider].build(setting, terms).step()
        spent = spent or time.monotonic() - began
        _let_go()
    return spent


def _run_inference(name: str) -> float:
    import _inference

    setting, provider = _named(name)
    began = time.monotonic()
    with contextlib.suppress(Exception):
        _inference.providers(setting)[provider].build(setting).step()
    spent = time.monotonic() - began
    _let_go()
    return spent


def _named(name: str):
    from _settings import Setting

    setting, provider = name.split()
    network, batch = setting.rsplit("-", 1)
    return Setting(network, int(batch)), provider


def _let_go() -> None:
    from _group import tidy

    tidy()


_RUN = {"ops": _run_op, "step": _run_step, "inference": _run_inference}
