"""The clock of the kernel benchmarks, and what a limit is made of.

On a GPU a call's time lies between two CUDA events. Before them the L2 cache is filled by reading
something else (what is read leaves nothing to write back), and the device is kept busy while the
host queues the call, so that launches cost the host's time, not the kernel's. On a CPU it is the
wall clock's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 << 20
COVER_CYCLES = 2_000_000
"""About a millisecond, in which the host queues a call."""


class Clock:
    """Measures calls; as pytest-benchmark's timer it shows the seconds added to `now`."""

    def __init__(self, device: torch.device) -> None:
        self.now = 0.0
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self._other = torch.zeros(FLUSH_BYTES // 4, device=device)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self) -> float:
        return self.now

    def seconds(self, call: Callable[..., object], *operands: object) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            call(*operands)
            return time.perf_counter() - start
        self._other.sum()
        torch.cuda._sleep(COVER_CYCLES)
        self._start.record()
        call(*operands)
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3


def quickest(clock: Clock, call: Callable[[], object]) -> float:
    """The least of twenty times: a limit is what the device reaches when nothing disturbs it."""
    return min([clock.seconds(call) for _ in range(23)][3:])


@dataclass(frozen=True)
class Limits:
    """What this device reaches when it does nothing else, measured here."""

    copy_bytes_per_s: float
    """Read and written, of one large copy."""
    matrix_flops_per_s: float
    """Of one large square product, in the precision of the ops."""

    def seconds(self, moved: int, flops: int) -> float:
        """The least that this much traffic and arithmetic can take."""
        return max(moved / self.copy_bytes_per_s, flops / self.matrix_flops_per_s)
