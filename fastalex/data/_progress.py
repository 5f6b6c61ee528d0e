"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

_SECONDS = 30.0


class Progress:
    """Counts images towards a total; a context manager."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._next_line = time.monotonic() + _SECONDS
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit="image") if terminal else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def skip(self, count: int) -> None:
        """Images that an earlier run stored."""
        self.advance(count)
        print(f"{self._what}: {count} images are there from an earlier run", file=sys.stderr)

    def advance(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() >= self._next_line or self._done == self._total:
            self._next_line = time.monotonic() + _SECONDS
            print(f"{self._what}: {self._done} of {self._total} images", file=sys.stderr)
