"""One process's share of the suite: where its rows go, what time it has, what it is told.

For the bench_*.py files, by way of conftest.py. Alone, under `pytest bench/bench_step.py`, a file
has all the time it wants and its rows are in pytest-benchmark's JSON only; `python -m bench` gives
it a file for rows, which are written one by one, so that a kill costs the one being measured.
"""

import json
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import _measure
from _machine import GPU
from _warm import warm

FOREVER = 1e9
COMPILE_SECONDS, SLOW_SECONDS, AHEAD_SECONDS = 30.0, 90.0, 5.0
"""What a compilation, and an autotuned one, is expected to take until one has been seen; and one
that was made ahead."""


class Session:
    """What a process of the suite knows.

    Args:
        rows: the file that takes the rows; None for none.
        seconds: what this process may take; None for as long as it takes.
        first: the rows of the first process, whose gates and failures hold for the later ones.
    """

    def __init__(self, rows: Path | None, seconds: float | None, first: Path | None) -> None:
        self._rows = rows
        self.end = time.monotonic() + (FOREVER if seconds is None else seconds)
        self._first: dict[str, dict] | None = None
        if first is not None:
            self._first = {row["key"]: row for row in read_rows(first) if "key" in row}
        self.gated: dict[tuple[str, str], dict[str, Any]] = {}
        """By network and provider: the error found, and at which batch."""
        self.plain: dict[Any, dict[str, float]] = {}
        """By setting: what plain PyTorch in half precision errs, tensor by tensor."""
        self.first_calls: dict[str, float] = {}
        """By "SETTING PROVIDER": seconds, where it was compiled ahead."""
        self._expected: dict[str, float] = {}

    @cached_property
    def limits(self) -> dict[str, float]:
        limits = _measure.limits()
        self.write({"limits": limits})
        return limits

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    @property
    def is_first(self) -> bool:
        return self._first is None

    def first_row(self, key: str) -> dict | None:
        return (self._first or {}).get(key)

    def share(self, weight: float, weights_left: float) -> float:
        """Seconds for one group, of what is left for it and those behind it."""
        _ = self.limits  # measured before the group's time runs
        return min(self.left * weight / weights_left, FOREVER)

    def expects(self, key: str, name: str, compiled: bool, slow: bool) -> float:
        """Seconds that a provider will take to make ready."""
        if f"{key} {name}" in self.first_calls:
            return AHEAD_SECONDS
        guess = SLOW_SECONDS if slow else COMPILE_SECONDS if compiled else 0.0
        return self._expected.get(name, guess)

    def compile_ahead(self, part: str, names: list[str]) -> None:
        """On a GPU, in the first process: many at a time, for at most a third of the time left."""
        if not (GPU and self.is_first and self._rows):
            return
        began = time.monotonic()
        self.first_calls = warm(part, names, min(self.left / 3, FOREVER))
        self.say(f"{len(self.first_calls)} compiled ahead in {time.monotonic() - began:.0f} s")

    def took(self, name: str, seconds: float) -> None:
        self._expected[name] = seconds

    def write(self, row: dict) -> None:
        if self._rows is not None:
            with open(self._rows, "a") as file:
                file.write(json.dumps(row) + "\n")

    def say(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


def read_rows(path: Path) -> list[dict]:
    """The rows of a file; one torn by a kill, the last, is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
