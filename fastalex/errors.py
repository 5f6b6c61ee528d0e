"""The errors a person meets, and what a command makes of them.

`UsageError`: the request is wrong (exit 2). `RunError`: the request was right and the run failed
(exit 1). Anyone may raise them; only `fastalex.commands` turns them into a line and an exit code.
"""


class UsageError(ValueError):
    """The caller asked for something that cannot be: names what came and what to do."""


class RunError(RuntimeError):
    """A sound request failed on the way: names what broke and what is left."""
