"""How calls are timed side by side: in turns, in groups back to back, on the device's clock.

For `_group.py`. A sample is the mean of a group of calls that follow each other, as steps do in a
training loop, between two CUDA events, or on a CPU the wall clock's. The groups of all providers
are taken in turns, and who goes first shifts by one each round, so that a drift of the machine
meets all alike. A latency is another thing: the wall clock from a call to its answer, device idle
before.
"""

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from _kernel_device import Clock, quickest
from _machine import DEVICE, GPU

WARM_UP_CALLS, WARM_UP_SECONDS = (50, 4.0) if GPU else (3, 20.0)
GROUP_SECONDS = 0.03 if GPU else 0.1
ROUNDS = (3, 30)
"""The fewest and the most samples a process takes of each provider."""

Call = Callable[[], object]


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted samples lie below, linear between neighbours."""
    ordered = sorted(samples)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def seconds(call: Call, repeats: int, latency: bool = False) -> float:
    """A call's, on average over `repeats`; `latency`: each is waited for before the next."""
    synchronize()
    if latency or not GPU:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
            synchronize()
        return (time.perf_counter() - start) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def warm_up(call: Call) -> float:
    """Calls it until it is in its stride; the seconds that a call takes then."""
    end = time.monotonic() + WARM_UP_SECONDS
    for _ in range(WARM_UP_CALLS - 1):
        call()
        synchronize()
        if time.monotonic() > end:
            break
    return seconds(call, 1)


def order(names: Sequence[str], number: int) -> list[str]:
    """Of a round: who goes first shifts by one each time."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


class Turns:
    """Takes samples of several calls, a round at a time; its `now` is a clock for one of them.

    Args:
        calls: by name, each with the seconds it takes.
        shown: whose seconds pytest-benchmark is shown.
    """

    def __init__(self, calls: dict[str, tuple[Call, float]], shown: str, latency: bool) -> None:
        self._calls = {name: call for name, (call, _) in calls.items()}
        self._repeats = {n: max(1, round(GROUP_SECONDS / s)) for n, (_, s) in calls.items()}
        self._shown, self._latency, self._rounds, self.now = shown, latency, 0, 0.0
        self.round_seconds = sum(self._repeats[n] * s for n, (_, s) in calls.items())
        self.samples: dict[str, list[float]] = {name: [] for name in calls}

    def rounds_in(self, available: float) -> int:
        """How many rounds fit in so many seconds, within ROUNDS."""
        fewest, most = ROUNDS
        return min(most, max(fewest, int(available / self.round_seconds)))

    def one_round(self) -> None:
        for name in order(list(self._calls), self._rounds):
            spent = seconds(self._calls[name], self._repeats[name], self._latency)
            self.samples[name].append(spent)
            self.now += spent if name == self._shown else 0.0
        self._rounds += 1

    def clock(self) -> float:
        return self.now


def memory() -> tuple[int, int]:
    """Bytes in use, and bytes that torch holds once it has given back what it can: the buffers of
    captured graphs are in the second."""
    if not GPU:
        return 0, 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def peak_memory(call: Call, before: tuple[int, int]) -> int | None:
    """Bytes that a provider needs: parameters, optimizer, what it keeps, and a step's peak.

    A replayed graph allocates nothing, its buffers are held; an eager step allocates and frees. So
    the larger of both is taken, over `before`, the `memory` ahead of its making. None on a CPU.
    """
    if not GPU:
        return None
    in_use, held = before
    held = memory()[1] - held
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - in_use, held)


def limits() -> dict[str, float]:
    """What the device reaches when it does nothing else: bytes and FLOPs a second.

    One large copy (read and written) and one large square product in each precision; on a CPU also
    as a convolution of 1 x 1: torch's products and convolutions come from two libraries there.
    """
    clock = Clock(DEVICE)
    size, side = (1 << 30, 8192) if GPU else (1 << 28, 1536)
    source = torch.zeros(size // 4, device=DEVICE)
    target = torch.empty_like(source)
    found = {"copy": 2 * size / quickest(clock, lambda: target.copy_(source))}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
        product = quickest(clock, lambda a=a, b=b: a @ b)
        if not GPU:
            x, w = a.view(16, -1, 1, side).permute(0, 3, 1, 2), b.view(side, side, 1, 1)
            product = min(product, quickest(clock, lambda x=x, w=w: F.conv2d(x, w)))
        found[name] = 2 * side**3 / product
    return found
