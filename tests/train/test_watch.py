"""`Watch` among ranks that only tell: whom it blames, and that it ends who waits for ever."""

import threading
import time
from types import SimpleNamespace

import pytest

from fastalex.errors import PeerLost, RunError
from fastalex.train import watch
from fastalex.train.watch import Watch


class Store(dict):
    """A torch.distributed store, as far as `Watch` uses one."""

    set = dict.__setitem__

    def get(self, key: str) -> bytes:
        return self[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(watch, "SECONDS_OF_SILENCE", 0.6)
    monkeypatch.setattr(watch, "SECONDS_TO_END", 0.3)


def error_of(store, *, seconds: float, tell=None, exchanges: int = 10, steps: int = 5):
    """What rank 0 of two ends with while it waits in its last step; None after two seconds.

    `tell(beat)` is what rank 1 tells.
    """
    errors, over = [], threading.Event()
    world = SimpleNamespace(rank=0, size=2, store=store, exchanges=lambda: exchanges)

    def end(error: Exception) -> None:
        errors.append(error)
        over.set()

    with Watch(world, seconds, end) as watched:
        for step in range(1, steps + 1):
            watched.at(f"the images of step {step}")
            watched.at(f"step {step}")
        until = time.monotonic() + 2
        beat = 0
        while not over.wait(0.05) and time.monotonic() < until:
            beat += 1
            if tell is not None:
                store.set("at/1", tell(beat))
    return errors[0] if errors else None


@pytest.mark.parametrize(
    ("tell", "kind", "line"),
    [
        (lambda beat: f"{beat} 10 9 step 5", PeerLost, "rank 1 hangs at step 5 (--timeout)"),
        (lambda beat: f"{beat} 9 99 the images of step 5", PeerLost, "rank 1 hangs at the images"),
        (lambda beat: f"{beat} 10 11 step 5", RunError, "rank 0 hangs at step 5 (--timeout)"),
        (lambda beat: f"{beat} 10 10 step 5", RunError, "no rank comes further than step 5"),
        (lambda beat: "1 10 11 step 5", PeerLost, "rank 1 hangs at step 5 (--timeout)"),
    ],
    ids=["fewer exchanges", "an earlier place", "this one", "all wait", "silent"],
)
def test_who_has_come_least_far_is_to_blame(tell, kind, line):
    error = error_of(Store(), seconds=0.9, tell=tell)
    assert type(error) is kind
    assert str(error).startswith(line)


def test_the_first_steps_may_take_longer():
    assert error_of(Store(), seconds=0.5, tell=lambda beat: f"{beat} 6 9 step 3", steps=3) is None


def test_a_rank_that_waits_for_a_failed_one_ends():
    error = error_of(Store({"failed/1": "a full disk"}), seconds=60)
    assert type(error) is PeerLost
    assert str(error) == "rank 1 has failed: a full disk"


def test_a_rank_ends_when_the_store_has_gone():
    error = error_of(SimpleNamespace(set=lambda *_: 1 / 0), seconds=60)
    assert type(error) is PeerLost
    assert str(error) == "rank 0, or what started the ranks, has gone"


def test_a_store_that_never_answers_does_not_hold_the_watch():
    frozen = threading.Event()
    error = error_of(SimpleNamespace(set=lambda *_: frozen.wait()), seconds=0.9)
    frozen.set()
    assert type(error) is PeerLost
    assert str(error).startswith("rank 0, or what started the ranks, answers no more at step 5")


def test_a_failure_is_told_even_where_nobody_is_left_to_hear_it():
    world = SimpleNamespace(rank=1, size=2, store=Store(), exchanges=lambda: 0)
    with pytest.raises(RunError, match="a full"), Watch(world, 60, pytest.fail):
        raise RunError("a full\ndisk")
    assert world.store["failed/1"] == "a full disk"
    world.store.set = lambda *_: 1 / 0
    with pytest.raises(RunError, match="a full disk"), Watch(world, 60, pytest.fail):
        raise RunError("a full disk")


def test_a_run_that_was_stopped_and_goes_on_is_not_taken_to_hang(monkeypatch):
    """As by Ctrl-Z and fg: all clocks have gone on."""
    later = iter([0.0] * 20)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + next(later, 1000.0))
    monkeypatch.setattr(watch, "time", clock)
    assert error_of(Store(), seconds=60, tell=lambda beat: f"{beat} 10 9 step 5") is None
