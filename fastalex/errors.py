"""The errors a person meets, and what a command makes of them.

Anyone may raise them; only `fastalex.commands` turns them into one line and an exit code.
"""


class UsageError(ValueError):
    """The request cannot be met: says what came and what to do. Exit 2."""


class RunError(RuntimeError):
    """A sound request failed on the way: says what broke and what is left. Exit 1."""


class PeerLost(RunError):  # noqa: N818 - says what happened to whom
    """Another rank has gone or answers no more: a consequence, reported if no rank has a cause."""


class Stopped(Exception):  # noqa: N818 - asked for, hence no error
    """A signal ended a run that saved its state first: says how to go on. Exit 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
