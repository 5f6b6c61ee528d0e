"""Finds a rank that hangs, or has failed, while the others wait for it in an exchange.

For the trainer. Who waits in an exchange cannot look around, and by NCCL would wait for ever; so
each rank has a thread that tells the others once a second that it lives and how far its rank has
come, and hears what they tell. Another one, which waits for nobody, ends the process, with the
error for whoever started it, when

    another rank has told that it failed, or the store has gone in which ranks tell, and this rank
    does not end by itself;
    this rank has not come further for too long: the rank that answers no more, else the one that
    has come least far, is to blame. Far is first the place, then the exchanges begun: of ranks in
    the same step, the one that sleeps has begun fewer than those that wait for it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from fastalex.errors import PeerLost, RunError
from fastalex.train.distributed import World

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 5.0
"""For a rank to end by itself once another has failed."""
SECONDS_OF_SILENCE = 5.0
"""After which a rank that has told nothing is taken for frozen."""
FIRST_PLACES, FIRST_PLACES_FACTOR = 6, 10.0
"""Compilation: the first three steps, of two places each, may take that much longer."""


class _Told(NamedTuple):
    """What a rank has told last."""

    beat: int = 0
    places: int = 0
    exchanges: int = 0
    name: str = "the start"


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
        self._heard = {rank: (_Told(), self._since) for rank in range(world.size)}
        self._failed: str | None = None
        self._talking = threading.Thread(target=self._talk, name="fastalex-talk", daemon=True)
        self._looking = threading.Thread(target=self._look, name="fastalex-watch", daemon=True)

    def __enter__(self) -> "Watch":
        if self._world.size > 1:
            self._talking.start()
            self._looking.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        if self._world.size == 1:
            return
        self._looking.join(SECONDS_TO_END)
        self._talking.join(SECONDS_BETWEEN_LOOKS)
        stuck = self._talking.is_alive()  # in a call to the store, as another one would be
        if not stuck and error is not None and not isinstance(error, PeerLost):
            with contextlib.suppress(Exception):  # the store has gone: so have those it would tell
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

    def _get(self, what: str, rank: int) -> str | None:
        key, store = f"{what}/{rank}", self._world.store
        return store.get(key).decode() if store.check([key]) else None

    def _talk(self) -> None:
        """Tell and hear. A store whose host is frozen answers never."""
        beat = 0
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            beat += 1
            try:
                self._set("at", f"{beat} {self._places} {self._world.exchanges()} {self._name}")
                for rank in range(self._world.size):
                    self._hear(rank)
            except Exception:
                self._failed = "rank 0, or what started the ranks, has gone"
                return

    def _hear(self, rank: int) -> None:
        if text := self._get("at", rank):
            beat, places, exchanges, name = text.split(" ", 3)
            told = _Told(int(beat), int(places), int(exchanges), name)
            if told != self._heard[rank][0]:
                self._heard[rank] = told, time.monotonic()
        if (reason := self._get("failed", rank)) is not None:
            self._failed = f"rank {rank} has failed: {reason}"

    def _look(self) -> None:
        failed_at, before = None, time.monotonic()
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            now = time.monotonic()
            if now - before > SECONDS_OF_SILENCE:
                self._since = now  # this process itself was stopped, as by Ctrl-Z, and goes on
            before = now
            if self._failed is not None:
                failed_at = failed_at or now
                if now - failed_at > SECONDS_TO_END:
                    return self._end(PeerLost(self._failed))
            factor = FIRST_PLACES_FACTOR if self._places <= FIRST_PLACES else 1.0
            allowed = self._seconds * factor
            if now - self._since > allowed and not self._over.is_set():
                return self._end(self._blame(now - self._since))

    def _blame(self, waited: float) -> RunError:
        now = time.monotonic()
        here = f"(--timeout): the run was stopped after {waited:.0f} s without progress"
        silent = [r for r, (_, since) in self._heard.items() if now - since > SECONDS_OF_SILENCE]
        if self._world.rank in silent:  # it has told itself, and hears nothing
            return PeerLost(
                f"rank 0, or what started the ranks, answers no more at {self._name} {here}"
            )
        far = {rank: told[1:3] for rank, (told, _) in self._heard.items()}
        least = [rank for rank in far if far[rank] == min(far.values())]
        guilty = silent or (least if len(least) < len(far) else [])
        if not guilty:
            return RunError(f"no rank comes further than {self._name} {here}")
        names = " and ".join(f"rank {r} hangs at {self._heard[r][0].name}" for r in guilty)
        return (RunError if self._world.rank in guilty else PeerLost)(f"{names} {here}")
