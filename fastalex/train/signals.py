"""SIGINT and SIGTERM while training: finish the step, save, leave."""

import os
import signal
import time
from types import FrameType
from typing import Any

SECONDS_DOUBLED = 1.0
"""A second signal so soon is the first once more: terminal, launcher and batch system may each send
it."""


class StopOnSignal:
    """While entered, the first SIGINT or SIGTERM only sets `signum`; a later one acts as before."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._at = signum, now
        elif now - self._at > SECONDS_DOUBLED:
            self._restore()
            os.kill(os.getpid(), signum)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
