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

from fastalex.errors import PeerLost, UsageError
from fastalex.model.exchange import Group
from fastalex.train.device import pick_device
from fastalex.train.meeting import SECONDS_TO_MEET, meet

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""Of any exchange, such as for the rank that prepares a dataset. `Watch` finds what hangs."""


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
        return pick_device(name, gpus)

    def exchanges(self) -> int:
        """How many exchanges this rank has begun, the network's and these; from any thread.

        Every rank begins the same ones in the same order: who has begun the fewest, the others
        wait for.
        """
        groups: Any = (dist.group.WORLD, self._control)
        return sum(group._get_sequence_number_for_group() for group in groups)

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
            odd = [name for name in first if theirs[name] != first[name]]
            if odd:
                said, wanted = (
                    ", ".join(f"{name} {of[name]}" for name in odd) for of in (theirs, first)
                )
                raise UsageError(
                    f"rank {rank} was started with {said}; rank 0 with {wanted}; "
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
        RunError: another program has MASTER_PORT.
        PeerLost: not all ranks came.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    by_nccl = device.type == "cuda" and torch.cuda.device_count() >= here
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, watched = meet(rank, size, seconds)
    with contextlib.ExitStack() as leaving:
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
        if not by_nccl:
            leaving.callback(dist.destroy_process_group)
        yield World(rank, size, watched, control)
    # NCCL's waits for what is under way: after an error, for ever.
    if by_nccl:
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
