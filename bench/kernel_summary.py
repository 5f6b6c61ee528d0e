"""What a run of bench_kernels.py comes to; printed at its end, or from the JSON it left.

python bench/kernel_summary.py bench/results/kernels-h200.json
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

OURS = ("triton", "auto")


def summary(kernels: dict) -> str:
    """Of the "kernels" entry of such a JSON."""
    return "\n".join([_table(kernels["passes"]), _convolutions(kernels["choices"])])


def _table(passes: list[dict]) -> str:
    """Times in milliseconds; `best / auto` above 1: fastalex is quicker than its best peer."""
    head = ("case", "pass", "limit", "auto", "of limit", "triton", "best peer", "", "best / auto")
    rows = [head]
    for each in passes:
        times = each["medians"]
        peers = {name: time for name, time in times.items() if name not in OURS}
        best = min(peers, key=lambda name: peers[name])
        rows.append((
            each["case"],
            each["pass"],
            f"{each['limit'] * 1e3:.4f}",
            f"{times['auto'] * 1e3:.4f}",
            f"{each['limit'] / times['auto']:.0%}",
            f"{times['triton'] * 1e3:.4f}" if "triton" in times else "-",
            f"{peers[best] * 1e3:.4f}",
            best,
            f"{peers[best] / times['auto']:.2f}",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _convolutions(choices: list[dict]) -> str:
    """For how many layers Triton was chosen, pass by pass."""
    won: dict[str, list[bool]] = defaultdict(list)
    for choice in choices:
        if choice["op"] == "conv2d_relu":
            won[choice["direction"]].append(choice["winner"] != "aten")
    if not won:
        return "conv2d_relu: nothing was chosen (on a CPU it is ATen's)"
    shares = [f"{which} {sum(each)} of {len(each)}" for which, each in won.items()]
    return "conv2d_relu, layers and batches that Triton won: " + ", ".join(shares)


if __name__ == "__main__":
    print(summary(json.loads(Path(sys.argv[1]).read_text())["kernels"]))
