"""Finds a rank that hangs, or has failed, while the others wait for it in an exchange.

For the trainer. Who waits in an exchange cannot look around, and by NCCL would wait for ever; so
each rank has a thread that tells the others once a second that it lives and how far its rank has
come, and looks what they told. Ends the process, with the error for whoever started it, when

    another rank has told that it failed, and this one does not end by itself;
    this rank has not come further for too long: the rank that answers no more, else the one that
    has come least far, is to blame.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from fastalex.errors import PeerLost, RunError
from fastalex.train.distributed import World

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 5.0
"""For a rank to end by itself once another has failed."""
SECONDS_OF_SILENCE = 5.0
"""After which a rank that has told nothing is taken for frozen."""
FIRST_STEPS, FIRST_STEPS_FACTOR = 3, 10.0
"""Compilation: the first places may take that much longer."""


class Watch:
    """While entered, watches the ranks of `world`; of one rank, nothing.

    Args:
        seconds: how long a rank may stay in one place.
        end: called with the error, from the watching thread; has to end the process.
    """

    def __init__(self, world: World, seconds: float, end: Callable[[Exception], None]) -> None:
        self._world, self._seconds, self._end = world, seconds, end
        self._places = 0
        self._name = "the start"
        self._since = time.monotonic()
        self._over = threading.Event()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._look, name="fastalex-watch", daemon=True)

    def __enter__(self) -> "Watch":
        if self._world.size > 1:
            self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        if self._world.size == 1:
            return
        self._thread.join(SECONDS_TO_END)
        if error is not None and not isinstance(error, PeerLost):
            self._set("failed", " ".join(str(error).split())[:500] or type(error).__name__)

    def at(self, place: str) -> None:
        """This rank has come to `place`; every rank comes to the same places in the same order."""
        self._places += 1
        self._name, self._since = place, time.monotonic()

    def along(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, each of which shows that this rank comes further; the ranks' may be unequally
        many."""
        for item in items:
            self._since = time.monotonic()
            yield item

    def _set(self, what: str, value: str) -> None:
        self._world.store.set(f"{what}/{self._world.rank}", value)

    def _look(self) -> None:
        beat = 0
        failed_at = None
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            beat += 1
            try:
                self._set("at", f"{beat} {self._places} {self._name}")
                told = self._told()
                failed = self._failed()
            except Exception:  # the store has gone with its host; the exchanges notice
                return
            now = time.monotonic()
            if failed is not None:
                failed_at = failed_at or now
                if now - failed_at > SECONDS_TO_END:
                    return self._end(PeerLost(failed))
            allowed = self._seconds * (FIRST_STEPS_FACTOR if self._places <= FIRST_STEPS else 1)
            if now - self._since > allowed and not self._over.is_set():
                return self._end(self._blame(told, now - self._since))

    def _told(self) -> dict[int, tuple[int, str]]:
        """By rank: how many places it has been to, and the last one; and notes who still tells."""
        told = {}
        for rank in range(self._world.size):
            key = f"at/{rank}"
            value = (
                self._world.store.get(key) if self._world.store.check([key]) else b"0 0 the start"
            )
            if self._heard.get(rank, (b"",))[0] != value:
                self._heard[rank] = value, time.monotonic()
            _, places, name = value.decode().split(" ", 2)
            told[rank] = int(places), name
        return told

    def _failed(self) -> str | None:
        for rank in range(self._world.size):
            if self._world.store.check([f"failed/{rank}"]):
                reason = self._world.store.get(f"failed/{rank}").decode()
                return f"rank {rank} has failed: {reason}"
        return None

    def _blame(self, told: dict[int, tuple[int, str]], waited: float) -> RunError:
        now = time.monotonic()
        silent = [r for r, (_, since) in self._heard.items() if now - since > SECONDS_OF_SILENCE]
        least = min(places for places, _ in told.values())
        slow = [rank for rank, (places, _) in told.items() if places == least]
        guilty = silent or (slow if len(slow) < len(told) else [])
        here = f"(--timeout): the run was stopped after {waited:.0f} s without progress"
        if not guilty:
            return RunError(f"no rank comes further than {self._name} {here}")
        names = " and ".join(f"rank {rank} hangs at {told[rank][1]}" for rank in guilty)
        if self._world.rank in guilty:
            return RunError(f"{names} {here}")
        return PeerLost(f"{names} {here}")
