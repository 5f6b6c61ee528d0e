"""Conversion on all cores, results in order. For `fastalex.data.prepare`."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fastalex.data.jpeg import Converted, convert_chunk
from fastalex.errors import RunError

CHUNK = 64
"""Images a worker converts at a time."""

_WORTH_A_PROCESS = 2_000
"""Images below which starting processes takes longer than it saves."""


class Convert(Protocol):
    def __call__(self, chunks: Iterable[list[Path]]) -> Iterator[Converted]: ...


@contextmanager
def converter(workers: int | None, num_images: int) -> Iterator[Convert]:
    """A function that converts chunks of paths, in order: in `workers` processes, or here for 1."""
    if workers is None:
        workers = num_cores() if num_images >= _WORTH_A_PROCESS else 1
    if workers == 1:
        yield lambda chunks: map(convert_chunk, chunks)
        return
    # spawn: forking a process that has threads (torch, DALI) can deadlock
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        yield lambda chunks: _in_order(pool, chunks, ahead=3 * workers)
    except BrokenProcessPool as error:
        raise RunError(
            "prepare: a worker process died (out of memory?), or could not start because the "
            'calling script is not under `if __name__ == "__main__":`; run again with fewer '
            "workers: finished shards are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[list[Path]], ahead: int
) -> Iterator[Converted]:
    waiting: deque[Future[Converted]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(convert_chunk, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a parent that was killed takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
