"""Starts the ranks of a command as processes on this machine, and sees to it that they end.

For the commands. By torch's elastic launcher: the part of it that starts and watches the processes,
which is all that one machine and no restarts leave of it. Its agent (`elastic_launch`) is not taken
since it gives ranks 30 s to stop, whatever happened: too few to save (`shutdown_timeout` came after
torch 2.11), too many for a rank that hangs as its peer has gone; and a second Ctrl-C waits again.
"""

import logging
import os
import signal
import sys
import tempfile
import time
from types import FrameType
from typing import Any

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    SignalException,
    SubprocessContext,
)

from fastalex.commands.blame import end_of, error_for, error_for_stopped
from fastalex.commands.rank import LAUNCHER
from fastalex.errors import Stopped

SECONDS_TO_SAVE = 120
"""For ranks that a signal tells to stop."""
SECONDS_ALIKE = 2.0
"""For the others to come to the same error by themselves, once a rank has failed."""
SECONDS_TO_STOP = 5
"""For the others to stop after that; they may wait for the one that failed, for ever."""
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_DOUBLED = 0.3
"""A second signal as soon as this is the first once more: a shell, a wrapper and a batch system may
each send it."""


def start(command: str, argv: list[str], processes: int) -> None:
    """Run `fastalex-COMMAND argv` as `processes` ranks; see `run`."""
    # The modules that this process has found, and no KeyboardInterrupt halfway through an import.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        f"sys.path[:] = {sys.path!r}; from fastalex.commands import launch; launch.{command}()"
    )
    debug = ["--debug"] if "--debug" in sys.argv else []  # `launch` has taken it out
    run(["-c", code, *argv, *debug], processes)


def run(arguments: list[str], processes: int) -> None:
    """Run `python ARGUMENTS` as `processes` ranks on this machine, until all have ended well.

    They write to this terminal, hand their errors over to here (`rank.leave_word`), share the cores
    unless OMP_NUM_THREADS is set, and find torch.distributed's store at MASTER_ADDR:MASTER_PORT.
    None outlives this process, however that ends. To be called in the main thread.

    Raises:
        UsageError, RunError: a rank failed; says which, and why. The others have been stopped.
        Stopped: SIGINT, SIGTERM or SIGHUP, after the ranks have ended by themselves; at a second
            signal they are killed.
    """
    _quieten()
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="fastalex-") as folder, _Signals() as signals:
        ranks = _Ranks(
            name="fastalex",
            entrypoint=sys.executable,
            args=dict.fromkeys(range(processes), tuple(arguments)),
            envs={rank: _environment(rank, processes, store.port) for rank in range(processes)},
            logs_specs=DefaultLogsSpecs(folder),
        )
        try:
            ranks.start()
            while (result := ranks.wait(0)) is None and signals.first is None:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            if signals.first is not None and result is None:
                ranks.tell(signals.first)
                result = ranks.wait(0)
        except SignalException as impatient:
            raise Stopped(
                f"the ranks were killed by a second signal, {impatient.sigval.name}; --resume goes "
                "on from the last checkpoint",
                impatient.sigval,
            ) from None
        finally:
            ranks.close(signal.SIGKILL)
    assert result is not None
    ends = [end_of(r, f, told=r in ranks.told) for r, f in result.failures.items()]
    if ends and signals.first is not None:
        raise error_for_stopped(ends, processes, signals.first, SECONDS_TO_SAVE)
    if ends:
        raise error_for(ends, processes)


class _Ranks(SubprocessContext):
    """The processes; who has been told to stop, and how long that may take."""

    told: frozenset[int] = frozenset()
    """The ranks that were alive when told."""

    def tell(self, signum: int) -> None:
        """Let all finish their step and save."""
        # Nothing in a rank saves at SIGHUP.
        self._stop(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM, SECONDS_TO_SAVE)

    def close(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        """Without a signal, as torch calls it: once all have ended, or one has failed."""
        if death_sig is not None:
            return super().close(death_sig, timeout)
        until = time.monotonic() + SECONDS_ALIKE
        while self._alive() and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._stop(signal.SIGTERM, SECONDS_TO_STOP)

    def _stop(self, death_sig: signal.Signals, timeout: int) -> None:
        self.told |= self._alive()
        super().close(death_sig, timeout)

    def _alive(self) -> frozenset[int]:
        processes = self.subprocess_handlers.items()
        return frozenset(rank for rank, handler in processes if handler.proc.poll() is None)


class _Signals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is noted, and a second raises."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # by torch; it raises at the first
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._note)
        self._before[signal.SIGQUIT] = signal.getsignal(signal.SIGQUIT)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self._at = signum, now
        elif now - self._at > SECONDS_DOUBLED:
            raise SignalException("impatient", signal.Signals(signum))


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun would have set for this rank, and who started it."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {
        LAUNCHER: str(os.getpid()),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // processes))),
    }


def _quieten() -> None:
    """torch's launcher logs warnings of what is reported here in one line."""
    log = logging.getLogger("torch.distributed.elastic")
    log.addHandler(logging.NullHandler())
    log.propagate = False
