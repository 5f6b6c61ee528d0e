"""A step by two CPU processes over gloo, traced with torch.profiler and drawn.

For two_gpus.py, which starts this file again as each of the two ranks. It shows the order of things
and what overlaps what; how long they take on a CPU says nothing about GPUs.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _two_gpus_model as model
import matplotlib.pyplot as plt
import torch
from _two_gpus_record import Compute, Launch
from _two_gpus_tables import settings
from matplotlib.patches import Patch
from torch.profiler import ProfilerActivity, profile, record_function

from fastalex.model import exchange
from fastalex.train.build import build_model
from fastalex.train.distributed import join
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

BATCH = 16
MICRO_BATCHES = (1, 2)
WARM_UP = 2
TRIES = 5
"""Drawn is the quickest: other programs disturb the longer ones."""
_EXCHANGES = ("all_gather_into_tensor", "reduce_scatter_tensor", "wait_tensor")


@dataclass
class Bar:
    """Something that lasts, in ms from the first of a step."""

    kind: str
    """compute, wait, travel or flight: from launch to wait."""
    label: str
    micro_batch: int
    begin: float
    end: float
    way: str = ""
    """compute: forward or backward."""


def draw(path: Path) -> None:
    """Run both ranks and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        _run_ranks(Path(folder))
        bars = {parts: _quickest(Path(folder), parts) for parts in MICRO_BATCHES}
    _draw(bars, path)


def _quickest(folder: Path, parts: int) -> list[list[Bar]]:
    """By rank."""
    tries = []
    for number in range(TRIES):
        paths = [folder / f"{parts}-{number}-{rank}.json" for rank in range(2)]
        tries.append([_bars(json.loads(path.read_text()), parts) for path in paths])
    return min(tries, key=lambda ranks: max(bars[-1].end for bars in ranks))


def _run_ranks(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    same = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    same |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **same, "RANK": str(rank)})
        for rank in range(2)
    ]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit("a rank of the trace failed")


def _rank(folder: Path) -> None:
    """One of the two: traces a step for each number of micro-batches."""
    device = torch.device("cpu")
    exchange.AT_ONCE_ON_CPU = False
    with join(device) as world:
        for parts in MICRO_BATCHES:
            config = settings("towers", BATCH, parts, precision="fp32")
            step = TrainStep(build_model(config, 1000), config, device, world.group, "towers")
            images = torch.randn(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
            labels, rates = torch.zeros(BATCH, dtype=torch.int64), Rates(0.0, 0.0, 0.0, 0.0)
            for number in range(WARM_UP):
                step(images, labels, rates, number)
            for number in range(TRIES):
                world.gather(None)  # both begin together
                with profile(activities=[ProfilerActivity.CPU]) as traced, record_function("step"):
                    loss, _ = step.network.loss(images, labels)
                    loss.backward()
                raw = folder / f"raw-{world.rank}.json"
                traced.export_chrome_trace(str(raw))
                events = json.loads(raw.read_text())["traceEvents"]
                wanted = [e for e in events if e.get("ph") == "X" and _is_wanted(e["name"])]
                path = folder / f"{parts}-{number}-{world.rank}.json"
                path.write_text(json.dumps(wanted))


def _is_wanted(name: str) -> bool:
    return name == "step" or name.startswith(("gloo:", "_c10d_functional::"))


def _bars(trace: list[dict[str, Any]], parts: int) -> list[Bar]:
    """The trace beside the program, whose launches and waits come in the same order."""
    trace = sorted(trace, key=lambda e: e["ts"])
    calls = [e for e in trace if e["name"].startswith("_c10d_functional::")]
    travels = [e for e in trace if e["name"].startswith("gloo:")]
    zero, end_of_step = next(_span(e) for e in trace if e["name"] == "step")
    bars: list[Bar] = []
    work, launched, since, busy = _labels(parts), [], zero, False

    def add(kind: str, label: str, m: int, begin: float, end: float, way: str = "") -> None:
        bars.append(Bar(kind, label, m, (begin - zero) / 1e3, (end - zero) / 1e3, way))

    def computed(until: float) -> int:
        label, m, way = next(work)
        add("compute", label, m, since, until, way)
        return m

    m = 0
    coming = iter(calls)
    for event in model.events(model.program("towers", BATCH, parts)):
        if isinstance(event, Compute):
            busy = True
            continue
        begin, end = _span(next(coming))
        m = computed(begin) if busy else m
        add("wait", "", m, begin, end)
        if isinstance(event, Launch):
            launched.append((begin, m))
        else:
            then, whose = launched[event.launch]
            add("flight", "", whose, then, end)
            add("travel", "", whose, *_span(travels[event.launch]))
        since, busy = end, False
    computed(end_of_step)
    return bars


def _span(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _labels(parts: int) -> Any:
    """Segment and micro-batch of each stretch of computing between exchanges, in order."""
    names = "ABCDE"
    yield from ((name, m, "forward") for name in names for m in range(parts))
    yield from ((name, m, "backward") for name in reversed(names) for m in reversed(range(parts)))


_COLORS = {("forward", 0): "#2b6cb0", ("forward", 1): "#90cdf4"}
_COLORS |= {("backward", 0): "#2f855a", ("backward", 1): "#9ae6b4"}
_WAIT, _FLIGHT, _TRAVEL = "#e53e3e", "#e2e8f0", "#4a5568"


def _draw(bars: dict[int, list[list[Bar]]], path: Path) -> None:
    """An axis for each number of micro-batches; on it two lanes for each rank."""
    longest = max(bar.end for ranks in bars.values() for rank in ranks for bar in rank)
    figure, axes = plt.subplots(len(bars), 1, figsize=(12, 6.4), sharex=True)
    for axis, (parts, ranks) in zip(axes, bars.items(), strict=True):
        for rank, of_rank in enumerate(ranks):
            _lanes(axis, of_rank, -3.2 * rank, longest)
        axis.set_yticks(
            [0, -1.2, -3.2, -4.4],
            ["rank 0 computes", "its exchanges", "rank 1 computes", "its exchanges"],
        )
        axis.set_xlim(0, longest)
        plural = "es" * (parts > 1)
        axis.set_title(f"{parts} micro-batch{plural}", loc="left")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[-1].set_xlabel(
        f"ms, forward and backward (two CPU processes over gloo, one thread each, {BATCH} images)"
    )
    named = {f"{way}, micro-batch {m}": color for (way, m), color in _COLORS.items()}
    named |= {"waits": _WAIT, "launched, not yet awaited": _FLIGHT, "travels": _TRAVEL}
    handles = [Patch(color=color, label=name) for name, color in named.items()]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _lanes(axis: Any, bars: list[Bar], top: float, longest: float) -> None:
    """What a rank computes, above what it has on the way, a thin lane for each micro-batch."""
    for bar in bars:
        place = [(bar.begin, bar.end - bar.begin)]
        lane = top - 1.0 - 0.4 * bar.micro_batch
        if bar.kind == "compute":
            axis.broken_barh(place, (top - 0.4, 0.8), color=_COLORS[bar.way, bar.micro_batch])
            if bar.end - bar.begin > 0.025 * longest:
                color = "white" if bar.micro_batch == 0 else "black"
                name = f"{bar.label}{bar.micro_batch}"
                middle = (bar.begin + bar.end) / 2
                axis.text(middle, top, name, ha="center", va="center", color=color, fontsize=9)
        elif bar.kind == "wait":
            axis.broken_barh(place, (top - 0.4, 0.8), color=_WAIT)
        elif bar.kind == "flight":
            axis.broken_barh(place, (lane - 0.15, 0.3), color=_FLIGHT)
        else:
            axis.broken_barh(place, (lane - 0.15, 0.3), color=_TRAVEL)


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
