"""fastalex-train with ranks that train nothing: each does what its argument says.

    python ranks_worker.py FOLDER DEED DEED

starts two ranks of itself, unless it is one. A rank writes its pid to FOLDER/RANK, waits for the
other's, and does its deed. No rank imports torch.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from fastalex.commands import launch, rank
from fastalex.errors import PeerLost, RunError, Stopped, UsageError


def usage(folder: Path) -> None:
    raise UsageError("--lr -1: must be positive")


def run(folder: Path) -> None:
    raise RunError("the loss is nan at step 3")


def plain(folder: Path) -> None:
    raise KeyError("surprise")


def peer_lost(folder: Path) -> None:
    raise PeerLost("another rank has gone")


def late_run(folder: Path) -> None:
    time.sleep(0.3)
    run(folder)


def kill(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(folder: Path) -> None:
    ctypes.string_at(0)


def exit_3(folder: Path) -> None:
    sys.exit(3)


def exit_0(folder: Path) -> None:
    sys.exit(0)


def work(folder: Path) -> None:
    time.sleep(1)


def wait(folder: Path) -> None:
    time.sleep(60)


def swallow(folder: Path) -> None:
    """As some modules while they are imported."""
    with contextlib.suppress(Exception):
        wait(folder)
    wait(folder)


def deaf(folder: Path) -> None:
    """As one that waits in an exchange: a signal is only noted."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(1)


def save(folder: Path) -> None:
    """As the trainer: the first signal ends the step, which takes a while; more are counted."""
    got: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, _: got.append(signum))
    (folder / f"saves-{os.environ['RANK']}").touch()
    while not got:
        time.sleep(0.01)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        time.sleep(0.01)
    (folder / f"saved-{os.environ['RANK']}").write_text(f"after {len(got)} signals")
    raise Stopped(f"stopped by {signal.Signals(got[0]).name} at step 8, saved", got[0])


def full_disk(folder: Path) -> None:
    try:
        save(folder)
    except Stopped as stopped:
        raise RunError("last.pt cannot be written: no space left") from stopped


def say(folder: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
    (folder / f"said-{os.environ['RANK']}").write_text(" ".join(os.environ[n] for n in names))


def main(argv: list[str]) -> None:
    if not rank.is_rank():
        from fastalex.commands import ranks

        return ranks.run([__file__, *argv], 2)
    folder = Path(argv[0])
    (folder / f"{os.environ['RANK']}.part").write_text(str(os.getpid()))
    (folder / f"{os.environ['RANK']}.part").rename(folder / os.environ["RANK"])
    while not all((folder / str(r)).exists() for r in range(int(os.environ["WORLD_SIZE"]))):
        time.sleep(0.01)
    globals()[argv[1 + int(os.environ["RANK"])]](folder)


if __name__ == "__main__":
    sys.modules["fastalex.commands.train"] = SimpleNamespace(main=main)  # type: ignore[assignment]
    launch.train()
