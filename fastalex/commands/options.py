"""Command lines from dataclasses, by tyro, with its error boxes made one line."""

import contextlib
import io
from typing import TypeVar

import tyro

from fastalex.errors import UsageError

T = TypeVar("T")


def parse(kind: type[T], prog: str, argv: list[str], default: T | None = None) -> T:
    """`argv` as a `kind`, a dataclass whose fields are the options and their docstrings the help.

    Raises:
        UsageError: an option that is unknown, missing or not of its type.
        SystemExit: --help was asked for and printed.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            if default is None:
                return tyro.cli(kind, prog=prog, args=argv)
            return tyro.cli(kind, prog=prog, args=argv, default=default)
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(f"{_first_words(box.getvalue())}; see {prog} --help") from error


def _first_words(box: str) -> str:
    """What a tyro error box says before its explanations."""
    words = []
    for line in box.splitlines()[1:]:
        text = line.strip("│ ")
        if words and (not text or text.startswith(("─", "╰", "Got errors"))):
            break
        words.append(text)
    return " ".join(words).rstrip(".")
