"""The tables of the suite, for the terminal (`text`) and for docs/performance.md (`markdown`).

Made from a results file alone (`_results.py` has its form). A table is its head and its rows, all
text; a part's tables are: who is quickest, then everybody, then what is missing.
"""

from collections.abc import Callable
from typing import Any

from _results import best, compared, median, ratio

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
GIB = 1 << 30


def text(result: dict, names: list[str]) -> str:
    """The tables of these parts, columns aligned."""
    lines = []
    for name in names:
        if part := result["parts"].get(name):
            for title, table in tables(name, part).items():
                lines += ["", f"{name}: {title}", *_aligned(table)]
            lines += [f"left out: {each}" for each in missing(part)]
    return "\n".join(lines)


def markdown(table: Table) -> str:
    head, rows = table
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def tables(name: str, part: dict) -> dict[str, Table]:
    """By title; a table of nothing is left out."""
    found = {title: make(part) for title, make in _TABLES[name].items()}
    return {title: table for title, table in found.items() if table[1]}


def missing(part: dict) -> list[str]:
    """A line for all that failed, was refused or had no time; equal reasons together."""
    lines = list(part["left_out"])
    reasons: dict[str, list[str]] = {}
    for row in part["rows"]:
        for word in ("failed", "left_out"):
            for name, why in row[word].items():
                told = f"{'failed: ' if word == 'failed' else ''}{why}"
                reasons.setdefault(told, []).append(f"{row['key']} {name}".removesuffix(" all"))
    return lines + [f"{', '.join(who)}: {why}" for why, who in reasons.items()]


def _aligned(table: Table) -> list[str]:
    head, rows = table
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def time(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{_three(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{_three(1e6 * seconds)} µs"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(entry: dict) -> str:
    seconds = entry["seconds"]
    return f"{time(seconds['p10'])} to {time(seconds['p90'])}"


def _memory(entry: dict) -> str:
    held = entry.get("peak_bytes")
    return f"{held / GIB:.2f} GiB" if held is not None else "-"


def _versus(part: dict) -> Table:
    """Best of ours and best of theirs, the ratio of the two, and the share of the limit."""
    head = (
        "network", "batch", "fastalex", "images/s", "best peer", "its time", "ratio",
        "share of the limit", "memory, fastalex / peer",
    )  # fmt: skip
    rows = []
    for row in compared(part):
        own, peer = best(row, True), best(row, False)
        entry, theirs = row["providers"][own], row["providers"].get(peer)
        memory = "-" if theirs is None else f"{_memory(entry)} / {_memory(theirs)}"
        rows.append((
            row["network"], str(row["batch"]),
            f"{time(median(row, own))}{'' if own == 'fastalex' else f' ({own})'}",
            f"{row['batch'] / median(row, own):,.0f}",
            peer or "-", time(median(row, peer)) if peer else "-",
            f"{ratio(row):.2f}" if peer else "-",
            f"{row['floor_s'] / median(row, own):.0%}",
            "-" if memory == "- / -" else memory,
        ))  # fmt: skip
    return _without_empty(head, rows)


def _without_empty(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Columns in which nobody has anything are left out."""
    keep = [i for i in range(len(head)) if any(row[i] != "-" for row in rows)]
    return tuple(head[i] for i in keep), [tuple(row[i] for i in keep) for row in rows]


def _everybody(part: dict) -> Table:
    return _entries(compared(part))


def _without(part: dict) -> Table:
    return _entries([row for row in part["rows"] if row["key"] == "ablation" and best(row, True)])


def _entries(of: list[dict]) -> Table:
    """Every provider of these rows."""
    head = (
        "network", "batch", "who", "what", "median", "10th to 90th percentile", "/ fastalex's",
        "peak memory", "first call", "error at the gate",
    )  # fmt: skip
    rows = []
    for row in of:
        own = best(row, True)
        for name, entry in row["providers"].items():
            rows.append((
                row["network"], str(row["batch"]), name, entry["says"], time(median(row, name)),
                spread(entry), f"{median(row, name) / median(row, own):.2f}", _memory(entry),
                time(entry["first_call_s"]), f"{entry['error']:.2g}",
            ))  # fmt: skip
    return _without_empty(head, rows)


def _ops(part: dict) -> Table:
    """Each pass: what it does a second, its share of the limit, and its peers."""
    head = (
        "network", "layer", "batch", "pass", "fastalex", "does a second", "share of the limit",
        "triton", "best peer", "its time", "ratio",
    )  # fmt: skip
    rows = []
    for row in part["rows"]:
        if "auto" not in row["providers"]:
            continue
        own, peer, entries = median(row, "auto"), best(row, False), row["providers"]
        rows.append((
            row["network"], row["layer"], str(row["batch"] or "-"), row["which"], time(own),
            rate(row, part["limits"]), f"{row['floor_s'] / own:.0%}",
            time(median(row, "triton")) if "triton" in entries else "-",
            peer or "-", time(median(row, peer)) if peer else "-",
            f"{median(row, peer) / own:.2f}" if peer else "-",
        ))  # fmt: skip
    return _without_empty(head, rows)


def rate(row: dict, limits: dict[str, float]) -> str:
    """Useful arithmetic where the limit is arithmetic, else bytes that must move."""
    own = median(row, "auto")
    moving = row["moved_bytes"] / limits["copy"]
    if row["floor_s"] > 1.001 * moving:
        return flops(row["flops"] / own)
    return f"{row['moved_bytes'] / own / 1e9:.3g} GB/s"


def flops(a_second: float) -> str:
    if a_second >= 1e12:
        return f"{_three(a_second / 1e12)} TFLOP/s"
    return f"{_three(a_second / 1e9)} GFLOP/s"


def _choices(part: dict) -> Table:
    """For how many layers and batches a kernel of fastalex's was chosen over torch's."""
    counts: dict[tuple[str, str], list[bool]] = {}
    for row in part["rows"]:
        for choice in row.get("choices", []):
            won = counts.setdefault((choice["op"], choice["direction"]), [])
            won.append(choice["winner"] != "aten")
    return ("op", "pass", "Triton chosen"), [
        (op, which, f"{sum(won)} of {len(won)}") for (op, which), won in counts.items()
    ]


def _data(part: dict) -> Table:
    head = ("images", "who", "images/s", "10th to 90th percentile", "clock")
    rows = []
    for row in part["rows"]:
        for name, entry in row["providers"].items():
            rows.append((
                row["tier"], entry.get("says", name), f"{images_per_s(row, name):,.0f}",
                f"{row['images'] / entry['seconds']['p90']:,.0f} to "
                f"{row['images'] / entry['seconds']['p10']:,.0f}", row["clock"],
            ))  # fmt: skip
    return head, rows


def images_per_s(row: dict, name: str) -> float:
    return row["images"] / median(row, name)


def _gpus(part: dict) -> Table:
    head = ("--gpus", "--parallel", "device", "images/s", "/ one's")
    one = next((row for row in part["rows"] if row["gpus"] == 1 and row["providers"]), None)
    rows = []
    for row in part["rows"]:
        for name in row["providers"]:
            share = images_per_s(row, name) / images_per_s(one, "fastalex") if one else None
            rows.append((
                str(row["gpus"]), row["parallel"], row["device"], f"{images_per_s(row, name):,.0f}",
                f"{share:.2f}" if share is not None else "-",
            ))  # fmt: skip
    return head, rows


_TABLES: dict[str, dict[str, Callable[[Any], Table]]] = {
    "step": {"the best": _versus, "everybody": _everybody, "without an op": _without},
    "inference": {"the best": _versus, "everybody": _everybody},
    "ops": {"each pass": _ops, "what was chosen": _choices},
    "data": {"images a second": _data},
    "gpus": {"images a second": _gpus},
}
