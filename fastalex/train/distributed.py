"""The processes that train together, and what they tell each other beside the network's exchanges.

For `fastalex.train` and the commands. torchrun, Slurm or fastalex's own launcher start the ranks
and say in the environment who is who (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT,
torch's names for them). What goes over here are a few numbers on the CPU, by gloo, in a process
group of its own: nothing waits for a GPU. One process has a `World` of one, which tells nobody.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fastalex.errors import PeerLost, RunError, UsageError
from fastalex.model.exchange import Group
from fastalex.train.device import pick_device

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""Of any exchange, such as for the rank that prepares a dataset. `Watch` finds what hangs."""
SECONDS_TO_MEET = 300.0
"""For all ranks to be there."""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    store: Any = None
    """A torch.distributed store of all ranks, for `Watch`."""
    _control: Any = None

    @property
    def main(self) -> bool:
        """Whether this rank writes the files and shows the progress."""
        return self.rank == 0

    @property
    def group(self) -> Group | None:
        """The ranks as the network's exchanges know them; None for one process."""
        if self.size == 1:
            return None
        world: Any = dist.group.WORLD
        return Group(world.group_name, self.rank, self.size)

    def device(self, name: str, gpus: int) -> torch.device:
        """This rank's device, for --device and --gpus.

        Raises:
            UsageError: the machine has not got it, or there are not as many ranks as `gpus`.
        """
        if gpus != self.size:
            raise UsageError(
                f"--gpus {gpus}: {self.size} rank(s) are running; start as many by fastalex-train, "
                "torchrun or Slurm"
            )
        local = int(os.environ.get("LOCAL_RANK", 0)) if self.size > 1 else 0
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        return pick_device(name, gpus, local, here)

    def gather(self, value: T) -> list[T]:
        """Everyone's `value`, any object that pickles, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with peers():
            dist.all_gather_object(values, value, group=self._control)
        return values

    def first(self, do: Callable[[], object]) -> None:
        """Rank 0 does it while the others wait; what it raises, all raise."""
        error: list[Exception | None] = [None]
        if self.main:
            try:
                do()
            except Exception as caught:
                if self.size == 1:
                    raise
                error = [caught]
        if self.size > 1:
            with peers():
                dist.broadcast_object_list(error, src=0, group=self._control)
        if error[0] is not None:
            raise error[0]

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum of everyone's `numbers`, on the CPU."""
        return self._reduce(numbers, dist.ReduceOp.SUM)

    def largest(self, numbers: Tensor) -> Tensor:
        """The largest of everyone's `numbers`, each for itself, on the CPU."""
        return self._reduce(numbers, dist.ReduceOp.MAX)

    def _reduce(self, numbers: Tensor, op: Any) -> Tensor:
        numbers = numbers.detach().cpu()
        if self.size > 1:
            numbers = numbers.clone()
            with peers():
                dist.all_reduce(numbers, op=op, group=self._control)
        return numbers

    def must_agree(self, facts: dict[str, Any]) -> None:
        """Raise UsageError, on all ranks, where one has another fact than rank 0."""
        first, *others = self.gather(facts)
        for rank, theirs in enumerate(others, start=1):
            for name, value in first.items():
                if theirs[name] != value:
                    raise UsageError(
                        f"rank {rank} was started with {name} {theirs[name]}, rank 0 with {value}; "
                        "all ranks need the same options, data and versions"
                    )


ALONE = World()


@contextlib.contextmanager
def join(device: torch.device, *, seconds: float = SECONDS_TO_MEET) -> Iterator[World]:
    """Meet the other ranks that the environment tells of, and leave them at the end.

    Args:
        device: cuda ranks talk by NCCL, cpu ranks by gloo. Two ranks cannot share a GPU by NCCL;
            where torch finds fewer GPUs than ranks on this machine, they talk by gloo, too.
        seconds: how long to wait for the others.

    Raises:
        RunError: MASTER_PORT is taken.
        PeerLost: not all ranks came.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    by_nccl = device.type == "cuda" and torch.cuda.device_count() >= here
    store = _meet(rank, size, seconds)
    try:
        with peers():
            dist.init_process_group(
                "nccl" if by_nccl else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=LONGEST_WAIT,
                device_id=device if by_nccl else None,
            )
            control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        yield World(rank, size, PrefixStore("watch", _connect(seconds)), control)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Turns what torch raises when another rank has gone into PeerLost."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, dist.DistError) or any(sign in text for sign in _SIGNS):
            raise PeerLost("another rank has gone, or cannot be reached") from error
        raise


_SIGNS = ("gloo/transport", "onnection closed by peer", "onnection reset by peer", "NCCL error")


def _meet(rank: int, size: int, seconds: float) -> Any:
    """The store, once all ranks have come to it."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store = _connect(seconds, hosts=rank == 0)
        if store.add("here", 1) == size:
            store.set("all", "")
        store.wait(["all"], timedelta(seconds=seconds))
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise RunError(
                f"{address} is taken by another program; set MASTER_PORT to a free port"
            ) from error
        raise PeerLost(
            f"not all {size} ranks came to {address} within {seconds:g} s; see what the others say"
        ) from error
    return store


def _connect(seconds: float, *, hosts: bool = False) -> Any:
    """A connection to the ranks' store; torch's launcher hosts it, else rank 0 does.

    The keys are of this attempt: torch's launcher may start the ranks again and keeps the store.
    """
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=hosts and not by_agent,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"fastalex/{attempt}", store)
