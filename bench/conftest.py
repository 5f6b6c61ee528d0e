"""What the benchmarks share: the device, a clock that waits for it, and what ran on what.

The GPU where there is one, else the CPU; the header and the JSON say which. Nothing here retries.
"""

import statistics
import time

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RATIOS = pytest.StashKey[list[str]]()


def device_clock() -> float:
    """Seconds, once everything asked of the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> str:
    if DEVICE.type == "cuda":
        return f"GPU {torch.cuda.get_device_name()}, bfloat16 autocast, CUDA {torch.version.cuda}"
    return f"no GPU: CPU, {torch.get_num_threads()} threads, float32"


def pytest_report_header() -> str:
    return f"bench: {machine()}, torch {torch.__version__}"


def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    for private in ("node", "release"):
        machine_info.pop(private, None)
    machine_info["cpu"].pop("flags", None)
    machine_info["device"] = machine()
    machine_info["torch"] = torch.__version__


def pytest_configure(config) -> None:
    config.stash[RATIOS] = []


def pytest_terminal_summary(terminalreporter, config) -> None:
    for line in config.stash[RATIOS]:
        terminalreporter.write_line(line)


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture
def time_it(benchmark):
    """Times a call on the device's clock, warmed up once; `moved` says what one call handles."""

    def run(call, rounds: int, **moved) -> None:
        benchmark._timer = device_clock
        benchmark.extra_info.update(moved, device=machine())
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)

    return run


@pytest.fixture
def compare(benchmark, request):
    """Times `ours` and `peer` in turns; the median of their ratio goes to the summary and the JSON.

    Below 1 is faster than the peer. Which of the two goes first alternates.
    """

    def run(ours, peer, rounds: int, **moved) -> None:
        ratios = []

        def one_of_each() -> None:
            pair = [("ours", ours), ("peer", peer)]
            seconds = {}
            for name, call in pair if len(ratios) % 2 else reversed(pair):
                start = device_clock()
                call()
                seconds[name] = device_clock() - start
            ratios.append(seconds["ours"] / seconds["peer"])

        benchmark._timer = device_clock
        benchmark.pedantic(one_of_each, rounds=rounds + 1)  # the first is warm-up
        ratios = sorted(ratios[1:])
        benchmark.extra_info.update(moved, device=machine(), time_ratios=ratios)
        request.config.stash[RATIOS].append(
            f"{request.node.name}: time ratio {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}, {rounds} rounds), {machine()}"
        )

    return run
