"""The pictures of docs/performance.md, from a results file alone. For `_page.py`.

Each is 8 inches wide at 100 dots an inch, so that its text is read at 800 pixels.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from _results import compared, median
from _tables import flops, time
from matplotlib.ticker import FuncFormatter, NullFormatter

OURS, LIMIT, GRAY, BLUE = "#c0392b", "#222222", "#7f8c8d", "#2471a3"
PEERS = {
    "eager": BLUE, "graph": "#17a589", "eager-lrn": "#5dade2", "compile": "#8e44ad",
    "reduce-overhead": "#d68910", "max-autotune": "#5d6d7e",
}  # fmt: skip
PASSES = {
    "forward": "#2471a3", "input-gradient": "#76a9cf", "weight-gradient": "#d68910",
    "backward": "#e8c07d", "step": "#5d6d7e",
}  # fmt: skip
STEP_LAYERS = {
    "conv1": 1, "relu+norm1+pool1": 1, "conv2": 1, "relu+norm2+pool2": 1, "conv3": 1, "conv4": 1,
    "conv5": 1, "pool5": 1, "fc6": 1, "fc7": 1, "relu+keyed-dropout": 2, "fc8": 1, "sgd": 1,
}  # fmt: skip
"""What the paper's step runs, and how often; `step_rows` says what a GPU's runs instead."""
KINDS = {
    "conv": ("#2471a3", "convolution"), "norm": (OURS, "norm + pool"), "pool": ("#d68910", "pool"),
    "fc": ("#1e8449", "fully connected"), "other": ("#34495e", "dropout, sgd"),
}  # fmt: skip
MARKERS = {
    "forward": "o", "input-gradient": "<", "weight-gradient": "s", "backward": "v", "step": "D"
}  # fmt: skip


def draw(result: dict, stem: str, folder: Path) -> dict[str, Path]:
    """Writes the pictures there is something for; their paths by name: step, ops, roofline."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    parts, drawn = result["parts"], {}
    if "step" in parts and compared(parts["step"]):
        drawn["step"] = _save(_step(parts["step"]), folder / f"{stem}-step.png")
    if "ops" in parts and step_rows(parts["ops"]):
        drawn["ops"] = _save(_ops(parts["ops"]), folder / f"{stem}-ops.png")
        drawn["roofline"] = _save(_roofline(parts["ops"]), folder / f"{stem}-roofline.png")
    return drawn


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return path


def _step(part: dict) -> Any:
    """Images a second: by batch where there are several, else a bar for each provider."""
    rows = compared(part)
    networks = list(dict.fromkeys(row["network"] for row in rows))
    by_batch = any(sum(r["network"] == n for r in rows) > 1 for n in networks)
    if by_batch:
        figure, axes = plt.subplots(1, len(networks), figsize=(8, 4.6), squeeze=False)
        for axis, network in zip(axes[0], networks, strict=True):
            _lines(axis, [row for row in rows if row["network"] == network], network)
        axes[0][0].set_ylabel("images a second, whole training step")
        figure.tight_layout(rect=(0, 0.16, 1, 1))
        handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
        figure.legend(handles.values(), handles, loc="lower center", ncol=4, frameon=False)
        return figure
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(8, 0.9 + sum(0.32 * len(r["providers"]) + 0.9 for r in rows)),
        squeeze=False, height_ratios=[len(r["providers"]) + 1 for r in rows],
    )  # fmt: skip
    for axis, row in zip(axes[:, 0], rows, strict=True):
        _bars(axis, row)
    axes[-1][0].set_xlabel("images a second, whole training step; lines: 10th to 90th percentile")
    figure.tight_layout()
    return figure


def _lines(axis: Any, rows: list[dict], network: str) -> None:
    rows = sorted(rows, key=lambda row: row["batch"])
    names = list(dict.fromkeys(name for row in rows for name in row["providers"]))
    for name in names:
        there = [row for row in rows if name in row["providers"]]
        ours = there[0]["providers"][name]["ours"]
        color = OURS if ours else PEERS.get(name, GRAY)
        axis.plot(
            [row["batch"] for row in there], [row["batch"] / median(row, name) for row in there],
            marker="o", color=color, linewidth=2.6 if ours else 1.4, markersize=4, label=name,
            zorder=3 if ours else 2,
        )  # fmt: skip
    batches = [row["batch"] for row in rows]
    limit = [row["batch"] / row["floor_s"] for row in rows]
    axis.plot(batches, limit, "--", color=LIMIT, linewidth=1.4, label="limit")
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlabel("batch")
    axis.set_title(network)
    axis.grid(axis="y", alpha=0.3)


def _bars(axis: Any, row: dict) -> None:
    names = sorted(row["providers"], key=lambda name: -median(row, name))
    for place, name in enumerate(names):
        entry = row["providers"][name]
        low, middle, high = (row["batch"] / entry["seconds"][q] for q in ("p90", "median", "p10"))
        color = OURS if entry["ours"] else BLUE
        axis.barh(place, middle, color=color, height=0.7)
        axis.plot([low, high], [place, place], color=LIMIT, linewidth=1.2)
        axis.text(high, place, f"  {middle:,.0f}", va="center")
    limit = row["batch"] / row["floor_s"]
    quickest = max(row["batch"] / row["providers"][n]["seconds"]["p10"] for n in names)
    axis.set_xlim(0, 1.12 * max(limit, quickest))
    axis.axvline(limit, color=LIMIT, linestyle="--", linewidth=1.2)
    axis.text(limit, len(names) - 0.4, f"limit {limit:,.0f} ", ha="right", va="bottom")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.6, len(names) + 0.2)
    axis.set_title(f"{row['network']}, batch {row['batch']}", loc="left")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def step_rows(part: dict) -> dict[str, list[dict]]:
    """The measured passes of the paper's step at the largest batch, by layer, in order."""
    rows = [r for r in part["rows"] if r["network"] in ("paper", "both") and r["providers"]]
    largest = max((row["batch"] for row in rows), default=0)
    found = {}
    for layer in STEP_LAYERS:
        name = layer
        if any(row["precision"] == "bf16" for row in rows):  # as a GPU's step runs them
            name = {"sgd": "sgd-halves", "conv1": "conv1-in-blocks"}.get(layer, layer)
        its = [row for row in rows if row["layer"] == name and row["batch"] in (0, largest)]
        if its:
            found[layer] = its
    return found


def _ops(part: dict) -> Any:
    """Milliseconds of each layer, its passes stacked, beside its limit; and its share of all."""
    layers = dict(reversed(step_rows(part).items()))
    spent = {
        layer: [1e3 * STEP_LAYERS[layer] * median(row, "auto") for row in rows]
        for layer, rows in layers.items()
    }
    total = sum(map(sum, spent.values()))
    figure, axis = plt.subplots(figsize=(8, 5.4))
    for place, (layer, rows) in enumerate(layers.items()):
        at = 0.0
        for row, each in zip(rows, spent[layer], strict=True):
            axis.barh(place, each, left=at, color=PASSES[row["which"]], height=0.7)
            at += each
        limit = 1e3 * STEP_LAYERS[layer] * sum(row["floor_s"] for row in rows)
        axis.plot([limit, limit], [place - 0.42, place + 0.42], color=LIMIT, linewidth=2.2)
        axis.text(max(at, limit), place, f"  {at / total:.0%}", va="center")
    twice = {layer: f"{layer} (twice)" for layer, times in STEP_LAYERS.items() if times == 2}
    axis.set_yticks(range(len(layers)), [twice.get(layer, layer) for layer in layers])
    axis.set_xlim(0, 1.12 * max(axis.get_xlim()[1], *map(sum, spent.values())))
    axis.set_xlabel("ms; in per cent: share of the sum")
    batch = max(row["batch"] for rows in layers.values() for row in rows)
    absent = [layer for layer in STEP_LAYERS if layer not in layers]
    but = f" (without {', '.join(absent)}: no time)" if absent else ""
    axis.set_title(f"the paper's step by op{but}, batch {batch}: {time(total / 1e3)}, each alone")
    used = [p for p in PASSES if any(row["which"] == p for rows in layers.values() for row in rows)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PASSES[which]) for which in used]
    handles.append(plt.Line2D([], [], color=LIMIT, linewidth=2.2))
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles, [*used, "limit"], loc="lower center", frameon=False, ncol=6)
    return figure


def _kind(layer: str) -> str:
    for kind in ("conv", "norm", "pool", "fc"):
        if kind in layer:
            return kind
    return "other"


def _roofline(part: dict) -> Any:
    """FLOP/s reached against FLOPs a byte, under the two ceilings."""
    rows = [row for rows in step_rows(part).values() for row in rows]
    copy, matrix = part["limits"]["copy"], part["limits"][rows[0]["precision"]]
    figure, axis = plt.subplots(figsize=(8, 5.6))
    points = [(r["flops"] / r["moved_bytes"], r["flops"] / median(r, "auto")) for r in rows]
    left, right = 0.4 * min(x for x, _ in points), 3 * max(matrix / copy, *(x for x, _ in points))
    axis.plot([left, matrix / copy, right], [left * copy, matrix, matrix], color=LIMIT)
    middle = (left * matrix / copy) ** 0.5  # on a logarithmic axis
    axis.annotate(
        f"copy {copy / 1e9:,.0f} GB/s", (middle, middle * copy), xytext=(-8, 6),
        textcoords="offset points", ha="right",
    )  # fmt: skip
    axis.text(right / 1.1, matrix * 1.2, f"matrix product {flops(matrix)}", ha="right")
    for row, (x, y) in zip(rows, points, strict=True):
        axis.plot(
            x, y, MARKERS.get(row["which"], "D"), color=KINDS[_kind(row["layer"])][0],
            markersize=7, alpha=0.8, linestyle="none",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=(left, right))
    axis.set_ylim(top=3 * max(matrix, *(y for _, y in points)))
    axis.set_xlabel("useful FLOPs a byte that must move")
    axis.set_ylabel("useful FLOP/s")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title("the paper's step: every pass of every op, and its limit")
    axis.grid(alpha=0.25)
    handles = [(color, "o", name) for color, name in KINDS.values()]
    handles += [(GRAY, marker, name) for name, marker in MARKERS.items()]
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend(
        [plt.Line2D([], [], color=c, marker=m, linestyle="none") for c, m, _ in handles],
        [name for *_, name in handles], loc="lower center", frameon=False, ncol=5,
    )  # fmt: skip
    return figure
