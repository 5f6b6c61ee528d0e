"""The entry points of the commands, and their manners.

One line for an error, on stderr, and an exit code: 2 for a request that cannot be met, 1 for a run
that failed, 128 + n for signal n. `--debug` shows the traceback instead.
"""

import importlib
import os
import signal
import sys
from types import FrameType

from fastalex.errors import RunError, Stopped, UsageError


def train() -> None:
    """fastalex-train"""
    _run("train")


def evaluate() -> None:
    """fastalex-evaluate"""
    _run("evaluate")


def prepare() -> None:
    """fastalex-prepare"""
    _run("prepare")


def _run(name: str) -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, _terminate)
    try:
        importlib.import_module(f"fastalex.commands.{name}").main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        code, message = _verdict(error)
        print(f"fastalex-{name}: {message}", file=sys.stderr)
        sys.exit(code)


def _verdict(error: BaseException) -> tuple[int, str]:
    """Exit code and line for an error."""
    text = " ".join(str(error).split())
    match error:
        case UsageError():
            return 2, text
        case RunError():
            return 1, text
        case Stopped():
            return 128 + error.signum, text
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


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Stopped("terminated", signum)
