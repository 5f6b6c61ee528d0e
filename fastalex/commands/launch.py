"""The entry points of the commands, and their manners.

One line for an error, on stderr, and an exit code: 2 for a request that cannot be met, 1 for a run
that failed, 128 + n for signal n. `--debug` shows the traceback instead. Of several processes that
run a command together (ranks), the one that started them says it, and names the rank.
"""

import contextlib
import importlib
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

from fastalex.commands import rank
from fastalex.errors import PeerLost, RunError, Stopped, UsageError


def train() -> None:
    """fastalex-train"""
    _run("train")


def evaluate() -> None:
    """fastalex-evaluate"""
    _run("evaluate")


def prepare() -> None:
    """fastalex-prepare"""
    _run("prepare")


def profile() -> None:
    """fastalex-profile"""
    _run("profile")


def end_rank(name: str, error: BaseException) -> NoReturn:
    """End this process, a rank of fastalex-NAME, with what `error` means; from any thread."""
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    code, message = _verdict(error)
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    if not rank.has_launcher():
        print(f"fastalex-{name}: rank {os.environ['RANK']}: {message}", file=sys.stderr)
    rank.leave_word(error, code, message, consequence=isinstance(error, PeerLost))
    _leave(code)


def _leave(code: int) -> NoReturn:
    """At once: as the interpreter ends, process groups of torch abort, or wait for other ranks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _run(name: str) -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, _terminate)
    rank.enter()
    try:
        importlib.import_module(f"fastalex.commands.{name}").main(arguments)
        sys.stdout.flush()
        if rank.is_rank():
            _leave(0)
    except (Exception, KeyboardInterrupt) as error:
        if rank.is_rank():
            end_rank(name, error)
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone: nobody to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if debug:
            raise
        code, message = _verdict(error)
        print(f"fastalex-{name}: {message}", file=sys.stderr)
        sys.exit(code)


def _verdict(error: BaseException) -> tuple[int, str]:
    """Exit code and line for an error."""
    if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11, of one within __set_name__
        error = error.__cause__
    text = " ".join(str(error).split())
    match error:
        case UsageError():
            return 2, text
        case RunError():
            return 1, text
        case Stopped():
            return 128 + error.signum, text
        case _Terminated():
            return 128 + signal.SIGTERM, "terminated"
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "interrupted"
        case ModuleNotFoundError() if error.name and not error.name.startswith("fastalex"):
            return 2, (
                f"{error.name} is not installed; what the commands need: "
                "pip install 'fastalex[train]' (in a clone: '.[train]')"
            )
        case OSError() if error.strerror:
            return 1, f"{error.filename or 'I/O'}: {error.strerror}"
        case _:
            return 1, f"{type(error).__name__}: {text} (--debug shows where)"


class _Terminated(KeyboardInterrupt):
    """SIGTERM. No Exception: an import in progress may swallow those."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated
