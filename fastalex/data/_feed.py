"""Reads the bytes of batches ahead of DALI, and stands in for images that are damaged.

For `fastalex.data.pipeline`. A `Feed` is the callable of DALI's `external_source`, which knows no
names and no ids: the ids and labels of what was handed over wait in `pending`, in order. When a
batch cannot be had, the feed ends: DALI delivers what it already has, then the pipeline raises
`error`. So a damaged image is reported at its batch, not a prefetched batch or two before it.
"""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import simplejpeg

from fastalex.data._requests import Request
from fastalex.data.shards import Split
from fastalex.errors import RunError
from fastalex.inputs import STORED_SIDE as SIDE

_AHEAD = 4
"""Batches read ahead, each by a thread of its own."""

Jpegs = list[np.ndarray | RunError]


@dataclass(slots=True)
class Damaged:
    """The images of a split found damaged so far in a run."""

    split: Split
    tolerated: int
    reasons: dict[int, RunError]

    def add(self, image_id: int, reason: RunError) -> None:
        """Raises `reason` when it is one damaged image too many."""
        if image_id in self.reasons:
            return
        if len(self.reasons) >= self.tolerated:
            raise reason
        self.reasons[image_id] = reason
        print(f"warning: another image stands in: {reason}", file=sys.stderr)

    def stand_in(self, image_id: int) -> tuple[int, np.ndarray]:
        """The next sound image, by id, and its bytes; the same in every run."""
        for step in range(1, len(self.split)):
            other = (image_id + step) % len(self.split)
            if other not in self.reasons:
                try:
                    return other, self.split.read(other)
                except RunError as reason:
                    self.add(other, reason)
        raise self.reasons[image_id]


@dataclass(slots=True)
class Pending:
    """A batch that DALI has and has not delivered."""

    request: Request
    ids: np.ndarray
    """(n,) int64: those asked for, or what stands in for them."""
    jpegs: list[np.ndarray]


class Feed:
    """Callable for `external_source`: one batch a call, `StopIteration` at the end."""

    def __init__(self, requests: Iterator[Request], damaged: Damaged) -> None:
        self.pending: deque[Pending] = deque()
        self.error: RunError | None = None
        self._requests = requests
        self._damaged = damaged
        self._threads = ThreadPoolExecutor(_AHEAD, thread_name_prefix="fastalex-read")
        self._reads: deque[tuple[Request, Future[Jpegs]]] = deque()

    def __call__(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        while len(self._reads) < _AHEAD and (request := next(self._requests, None)) is not None:
            self._reads.append((request, self._threads.submit(self._read, request)))
        if not self._reads or self.error is not None:
            raise StopIteration
        request, read = self._reads.popleft()
        ids = request.ids.copy()
        jpegs: list[np.ndarray] = []
        try:
            for i, (image_id, jpeg) in enumerate(zip(request.ids, read.result(), strict=True)):
                if isinstance(jpeg, RunError):
                    self._damaged.add(int(image_id), jpeg)
                    ids[i], jpeg = self._damaged.stand_in(int(image_id))
                jpegs.append(jpeg)
        except RunError as error:
            self.error = error.with_traceback(None)  # it would keep DALI's threads alive
            raise StopIteration from None
        self.pending.append(Pending(request, ids, jpegs))
        return jpegs, request.corner, request.flip, request.offset, request.std

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _read(self, request: Request) -> Jpegs:
        return [self._read_one(int(image_id)) for image_id in request.ids]

    def _read_one(self, image_id: int) -> np.ndarray | RunError:
        if image_id in self._damaged.reasons:
            return self._damaged.reasons[image_id]
        try:
            return self._damaged.split.read(image_id)
        except RunError as error:
            return error.with_traceback(None)

    def unread(self) -> Iterator[Request]:
        """What DALI has not delivered, then what is still to come: where a new feed goes on."""
        yield from [batch.request for batch in self.pending]
        yield from [request for request, _ in self._reads]
        yield from self._requests

    def undecodable(self) -> dict[int, RunError]:
        """Which of the pending images no decoder can read; for when DALI says one of them is."""
        found: dict[int, RunError] = {}
        for batch in self.pending:
            for image_id, jpeg in zip(batch.ids.tolist(), batch.jpegs, strict=True):
                try:
                    shape = simplejpeg.decode_jpeg(jpeg).shape
                    reason = "" if shape == (SIDE, SIDE, 3) else f"it has shape {shape}"
                except ValueError as error:
                    reason = str(error)
                if reason:
                    where = self._damaged.split.where(image_id)
                    found[image_id] = RunError(f"{where}: cannot be decoded: {reason}")
        return found
