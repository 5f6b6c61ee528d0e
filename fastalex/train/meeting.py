"""Where the ranks meet: the store at MASTER_ADDR:MASTER_PORT. For `fastalex.train.distributed`.

torch's launcher hosts the store (torchrun, fastalex's own), else rank 0 does, as under Slurm. The
host may come minutes after the others, and another program may have the port.
"""

import os
import socket
import threading
import time
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fastalex.errors import PeerLost, RunError, UsageError

SECONDS_TO_MEET = 300.0
"""For all ranks to be there: a machine may start minutes after another."""
SECONDS_TO_ANSWER = 10.0
"""For what listens at the meeting point to show that it is the ranks' store."""


def meet(rank: int, size: int, seconds: float) -> tuple[Any, Any]:
    """Two connections to the store, once all ranks have come to it: one may wait, one never does.

    Args:
        seconds: how long to wait for the others.

    Raises:
        UsageError: the environment does not say where.
        RunError: another program, or another run, has the port.
        PeerLost: not all ranks came.
    """
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UsageError(
                f"RANK is set, but {name} is not: set it to where rank 0 is, the same for all "
                "ranks, or let fastalex-train --gpus, torchrun or Slurm start them"
            )
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    place = f"{address[0]}:{address[1]}"
    try:
        store = _connect(address, seconds, hosts=rank == 0)
        second = _connect(address, seconds)
        if store.add(f"rank {rank}", 1) > 1:
            raise RunError(
                f"{place} has a rank {rank} already, of another run; set MASTER_PORT to a free port"
            )
        if store.add("here", 1) == size:
            store.set("all", "")
        store.wait(["all"], timedelta(seconds=seconds))
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise RunError(
                f"{place} is taken by another program; set MASTER_PORT to a free port"
            ) from error
        raise PeerLost(
            f"not all {size} ranks came to {place} within {seconds:g} s, or one has gone again; "
            "see what the others say"
        ) from error
    return store, PrefixStore("second", second)


def _connect(address: tuple[str, int], seconds: float, *, hosts: bool = False) -> Any:
    """A connection to the store, whose keys are of this attempt: torch's launcher may start the
    ranks again and keeps the store.
    """
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if hosts and not by_agent:
        wait = timedelta(seconds=seconds)
        store = TCPStore(*address, is_master=True, timeout=wait, wait_for_workers=False)
    else:
        store = _client(address, seconds)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"fastalex/{attempt}", store)


def _client(address: tuple[str, int], seconds: float) -> TCPStore:
    """A connection to the store at `address`, which may be there only after up to `seconds`.

    torch's own wait does not tell a host that is late from a program that accepts and never
    answers, at which it hangs whatever its timeout; so whoever listens has to answer soon.
    """
    _knock(address, seconds)
    made: Future[TCPStore] = Future()

    def ask() -> None:
        wait = timedelta(seconds=SECONDS_TO_ANSWER)
        try:
            made.set_result(TCPStore(*address, timeout=wait, wait_for_workers=False))
        except Exception as error:
            made.set_exception(error)

    threading.Thread(target=ask, name="fastalex-connect", daemon=True).start()
    try:
        store = made.result(SECONDS_TO_ANSWER)
    except (dist.DistError, TimeoutError) as error:
        raise RunError(
            f"{address[0]}:{address[1]} is taken by another program, which answers in rank 0's "
            "place; set MASTER_PORT to a free port"
        ) from error
    store.set_timeout(timedelta(seconds=seconds))
    return store


def _knock(address: tuple[str, int], seconds: float) -> None:
    """Wait until something listens at `address`."""
    until = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, timeout=SECONDS_TO_ANSWER).close()
        except OSError as error:
            if time.monotonic() > until:
                raise PeerLost(
                    f"rank 0 did not come to {address[0]}:{address[1]} (MASTER_ADDR, MASTER_PORT) "
                    f"within {seconds:g} s: {error.strerror or error}"
                ) from error
        time.sleep(0.2)
