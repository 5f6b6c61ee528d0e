"""Where a step finds its images: on a GPU in one of two places that are written while it runs.

For `fastalex.train.step`. The places never move, so that a step can be recorded as a CUDA graph. On
a stream of its own, the next batch is decoded and its pixels become the network's input, in the
step's precision and in blocks (`fastalex.model.blocks`), by one kernel that writes it there.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastalex.data.batch import Changes
from fastalex.model.blocks import Blocks

PLACES = 2


class Inputs(Protocol):
    """Takes batches and hands them to steps, in order."""

    wants_pixels: bool
    """Better than images made elsewhere."""

    def stream(self) -> AbstractContextManager[object]:
        """Within it a batch is to be made, and `put`."""
        ...

    def put(self, images: Tensor, labels: Tensor, changes: Changes | None) -> None:
        """Of a `fastalex.data.batch.Batch`."""
        ...

    def taken(self) -> AbstractContextManager[tuple[Tensor, Tensor]]:
        """The oldest batch that was put; it may be overwritten after the context."""
        ...


class Direct:
    """On a CPU: a batch as it comes."""

    wants_pixels = False

    def __init__(self) -> None:
        self._batch: tuple[Tensor, Tensor] | None = None

    def stream(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def put(self, images: Tensor, labels: Tensor, changes: Changes | None) -> None:
        self._batch = (images if changes is None else changes.of(images)), labels

    @contextlib.contextmanager
    def taken(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._batch is not None, "no batch was put"
        batch, self._batch = self._batch, None
        yield batch


@dataclass(slots=True)
class _Place:
    images: Tensor
    labels: Tensor
    filled: torch.cuda.Event
    free: torch.cuda.Event


class Places:
    """On a GPU: two places, made when the first batch comes. At most two batches may wait.

    Args:
        dtype: the images'.
        blocks: how the first layer takes them; None: plain.
    """

    wants_pixels = True

    def __init__(self, device: torch.device, dtype: torch.dtype, blocks: Blocks | None) -> None:
        self._device, self._dtype, self._blocks = device, dtype, blocks
        self._stream = torch.cuda.Stream(device)
        self._places: list[_Place] = []
        self._put = self._taken = 0

    def stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def put(self, images: Tensor, labels: Tensor, changes: Changes | None) -> None:
        # What comes from the stream of the caller is there before it is read here.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            place = self._next(images, labels, changes)
            self._stream.wait_event(place.free)
            self._write(place.images, images, changes)
            place.labels.copy_(labels)
            place.filled.record(self._stream)
        given = (images, labels) if changes is None else (images, labels, *changes.tensors())
        for source in given:  # may be let go before it is read
            source.record_stream(self._stream)
        self._put += 1

    @contextlib.contextmanager
    def taken(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._put - self._taken in range(1, PLACES + 1), (self._put, self._taken)
        place = self._places[self._taken % PLACES]
        current = torch.cuda.current_stream(self._device)
        current.wait_event(place.filled)
        yield place.images, place.labels
        place.free.record(current)
        self._taken += 1

    def _next(self, images: Tensor, labels: Tensor, changes: Changes | None) -> _Place:
        if len(self._places) < PLACES:
            made = self._made(images, changes)
            like = torch.empty_like(made, memory_format=torch.channels_last)
            events = torch.cuda.Event(), torch.cuda.Event()
            self._places.append(_Place(like, torch.empty_like(labels), *events))
        return self._places[self._put % PLACES]

    def _write(self, to: Tensor, images: Tensor, changes: Changes | None) -> None:
        if changes is None:
            to.copy_(self._made(images, None))
        else:
            changes.of(images, out=to, **self._as_arguments())

    def _made(self, images: Tensor, changes: Changes | None) -> Tensor:
        if changes is not None:
            return changes.of(images, dtype=self._dtype, **self._as_arguments())
        return (images if self._blocks is None else self._blocks.of(images)).to(self._dtype)

    def _as_arguments(self) -> dict[str, Any]:
        if self._blocks is None:
            return {}
        return {
            "space_to_depth": self._blocks.space_to_depth, "padding": self._blocks.padding
        }  # fmt: skip
