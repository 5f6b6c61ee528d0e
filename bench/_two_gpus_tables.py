"""The tables of docs/two-gpus.md: made, written between their marks, compared with the file.

For two_gpus.py and the tests. A table is a list of rows of cells, the first of them its head.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _two_gpus_model as model
import _two_gpus_network as network
import _two_gpus_record as record
import torch
from _two_gpus_record import Compute, Event, Launch, Wait

from fastalex.train.config import TrainConfig

BATCHES = (128, 256, 512, 1024)
SCHEDULE_BATCH = 256
TIMED = {
    "one GPU": ("one", 1, True),
    "data, fp32 gradients": ("data", 1, False),
    "data": ("data", 1, True),
    "towers, 1": ("towers", 1, True),
    "towers, 2": ("towers", 2, True),
    "towers, 4": ("towers", 4, True),
    "hybrid, 1": ("hybrid", 1, True),
    "hybrid, 2": ("hybrid", 2, True),
}
SENT = {
    "towers": ("towers", True),
    "data, fp32": ("data", False),
    "data, bf16": ("data", True),
    "hybrid": ("hybrid", True),
}


def settings(mode: str, batch: int, micro_batches: int | None = None, **more: Any) -> TrainConfig:
    """Of a step on two ranks, as `_two_gpus_record` takes them."""
    same: dict[str, Any] = {"recipe": "paper", "variant": "paper", "gpus": 2, "device": "cpu"}
    same |= {"parallel": mode, "batch_size": batch, "micro_batches": micro_batches}
    return TrainConfig(**{"compile": False, "precision": "bf16", **same, **more})


def bytes_by_formula() -> str:
    towers, hybrid = (
        sum(p[0].reads for p in network.segments(m)[1:]) for m in ("towers", "hybrid")
    )
    every = network.parameters(convolutions=True)
    shared = network.parameters(convolutions=True, fully_connected=False)
    formulas = [
        ["", "bytes that a GPU sends, and receives, in a step"],
        ["towers", f"a B ({towers:,} + {network.CLASSES // 2})"],
        ["data", f"2 (K - 1) / K × g × {every:,}"],
        [
            "hybrid",
            f"2 (K - 1) / K × (a B × {hybrid:,} + 4 × {shared:,}) "
            f"+ (K - 1) (a B ⌈{network.CLASSES} / K⌉ + 8 B / K)",
        ],
    ]
    rows = [["MB, two GPUs, batch", *map(str, BATCHES)]]
    for name, (mode, half) in SENT.items():
        sent = [network.bytes_sent(mode, batch, half=half) / 1e6 for batch in BATCHES]
        rows.append([name, *(f"{mb:.1f}" for mb in sent)])
    return f"{markdown(formulas)}\n\n{markdown(rows)}"


def predicted_times() -> str:
    places = [(link, batch) for link in model.GPUS for batch in BATCHES]
    rows = [["ms", *(f"{link}, {batch}" for link, batch in places)]]
    for name, (mode, parts, half) in TIMED.items():
        cells = []
        for link, batch in places:
            steps = model.program(mode, batch, parts, half_gradients=half)
            times = model.simulate(steps, model.GPUS[link])
            waits = f" ({times.exposed * 1e3:.2f})" if mode != "one" else ""
            cells.append(f"{times.step * 1e3:.2f}{waits}")
        rows.append([name, *cells])
    return f"{_assumptions()}\n\n{markdown(rows)}"


def _assumptions() -> str:
    gpus = "; ".join(
        f"{gpu.name}, {gpu.flops / 1e12:g} TFLOP/s in bfloat16, {gpu.memory / 1e12:g} TB/s, "
        f"{link} with {gpu.link / 1e9:g} GB/s a direction"
        for link, gpu in model.GPUS.items()
    )
    reached = ", ".join(f"{what} {share:.0%}" for what, share in model.EFFICIENCY.items())
    return (
        f"Assumed: {gpus}. Reached of that: {reached}. A layer's pass takes at least "
        f"{model.PASS * 1e6:g} µs, an exchange {model.LATENCY * 1e6:g} µs and its bytes."
    )


class Exchange(NamedTuple):
    """From its launch to its wait."""

    name: str
    micro_batch: int
    sent: int
    flops: int
    """Of products that the program has between the two."""


def exchanges(events: list[Event], micro_batches: int) -> list[Exchange]:
    """Those of a compiled step by towers, in the order of their launches."""
    joins = [f"{part[0].name}'s input" for part in network.segments("towers")[1:]]
    names = [*joins, "the logits", *(f"{name}, gradient" for name in reversed(joins))]
    launches = [i for i, event in enumerate(events) if isinstance(event, Launch)]
    if len(launches) != len(names) * micro_batches:
        raise AssertionError(f"{len(launches)} exchanges for {micro_batches} micro-batches")
    found = []
    for number, at in enumerate(launches):
        until = next(i for i, event in enumerate(events) if event == Wait(number))
        between = sum(e.flops for e in events[at:until] if isinstance(e, Compute))
        launch: Any = events[at]
        name, m = names[number // micro_batches], number % micro_batches
        backward = name.endswith("gradient")
        found.append(Exchange(name, micro_batches - 1 - m if backward else m, launch.sent, between))
    return found


def schedule(found: list[Exchange]) -> str:
    """Of two micro-batches."""
    head = ["exchange", "MB", "GFLOP between"]
    head += [f"{gpu.name} + {link}: µs between, on the link" for link, gpu in model.GPUS.items()]
    rows = [head]
    for first, second in zip(found[::2], found[1::2], strict=True):
        flops = f"{first.flops / 1e9:.1f}, {second.flops / 1e9:.1f}"
        cells = []
        for gpu in model.GPUS.values():
            between = [model.Work(e.flops).seconds(gpu) * 1e6 for e in (first, second)]
            link = model.travel(first.sent, gpu) * 1e6
            cells.append(f"{between[0]:.0f}, {between[1]:.0f}; {link:.0f}")
        rows.append([first.name, f"{first.sent / 1e6:.2f}", flops, *cells])
    return markdown(rows)


def measured_schedule() -> str:
    """With fastalex's options of torch.compile, and what its default ones would make of it.

    Compiles twice; see `_two_gpus_record.compiled` for where that may be done.
    """
    config = settings("towers", SCHEDULE_BATCH, 2, compile=True)
    ours, default = (exchanges(record.compiled(config, options), 2) for options in (None, {}))
    bare, bare_by_default = (sum(e.flops == 0 for e in each) for each in (ours, default))
    return (
        f"torch {torch.__version__.split('+')[0]}, batch {SCHEDULE_BATCH}\n\n{schedule(ours)}\n\n"
        f"Awaited with no product in between: {bare} of these {len(ours)}; with torch.compile's "
        f"default options {bare_by_default}."
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def section(name: str, text: str) -> str:
    """What a file has between the marks of the table `name`."""
    found = re.search(_marks(name), text, re.DOTALL)
    if not found:
        raise ValueError(f"no place for the table {name!r}: wants the marks {_marks(name)}")
    return found[2].strip()


def write(name: str, table: str, path: Path) -> None:
    """Between the marks of the table `name`; the rest of the file stays."""
    text = path.read_text()
    section(name, text)
    new = re.sub(_marks(name), lambda m: f"{m[1]}\n{table}\n{m[3]}", text, flags=re.DOTALL)
    path.write_text(new)


def _marks(name: str) -> str:
    return f"(<!-- {name} by bench/two_gpus.py -->)(.*?)(<!-- end of {name} -->)"
