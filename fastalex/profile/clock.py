"""The profile's clock, and the two limits of the device, measured with it. For `fastalex.profile`.

On a GPU the time of a call lies between two CUDA events. Before them the L2 cache is filled with
something else, and the device kept busy while the host queues the call, so that launches cost the
host's time, not the call's. On a CPU it is the wall clock's.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F

Result = TypeVar("Result")

FLUSH_BYTES = 256 << 20
COVER_CYCLES = 4_000_000
"""About two milliseconds, in which the host queues a call."""
STEPS_IN_A_ROW = 10


class Clock:
    """Milliseconds of calls on `device`."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self._other = torch.zeros(FLUSH_BYTES // 4, device=device)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once(self, call: Callable[[], Result]) -> tuple[float, Result]:
        """The call's time by itself, and what it returned."""
        if not self.on_gpu:
            began = time.perf_counter()
            result = call()
            return (time.perf_counter() - began) * 1e3, result
        self._other.sum()
        torch.cuda._sleep(COVER_CYCLES)
        return self._between_events(call)

    def in_a_row(self, call: Callable[[], object]) -> float:
        """A call's time among others of its kind: with what the host takes, if that is longer."""
        if not self.on_gpu:
            return self.once(call)[0]

        def calls() -> None:
            for _ in range(STEPS_IN_A_ROW):
                call()

        torch.cuda.synchronize()
        return self._between_events(calls)[0] / STEPS_IN_A_ROW

    def rounds(self, first: float) -> int:
        """How often to repeat what took `first` ms when warm, so that a CPU is done soon."""
        return 20 if self.on_gpu else max(3, min(20, round(500 / max(first, 1e-3))))

    def median(self, call: Callable[[], object]) -> float:
        call()
        first = self.once(call)[0]
        return statistics.median(self.once(call)[0] for _ in range(self.rounds(first)))

    def _between_events(self, call: Callable[[], Result]) -> tuple[float, Result]:
        self._start.record()
        result = call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end), result


@dataclass(frozen=True)
class Limits:
    """What the device reaches when it does nothing else."""

    flops_per_s: float
    """Of one large square matrix product."""
    bytes_per_s: float
    """Read and written, of one large copy."""

    def milliseconds(self, flops: int, moved: int) -> float:
        """The least that this much arithmetic and traffic can take."""
        return 1e3 * max(flops / self.flops_per_s, moved / self.bytes_per_s)


def limits(device: torch.device, dtype: torch.dtype, clock: Clock) -> Limits:
    """Measured in `dtype`; on a CPU the product also as a convolution of 1 x 1: products and
    convolutions are of two libraries there."""
    side, size = (8192, 1 << 30) if clock.on_gpu else (2048, 1 << 28)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = clock.median(lambda: a @ b)
    if not clock.on_gpu:
        x, w = a.view(16, -1, 1, side).permute(0, 3, 1, 2), b.view(side, side, 1, 1)
        product = min(product, clock.median(lambda: F.conv2d(x, w)))
    source = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy = clock.median(lambda: target.copy_(source))
    return Limits(flops_per_s=2e3 * side**3 / product, bytes_per_s=2e3 * size / copy)
