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
    """Milliseconds, and the peers' times over `auto`'s: above 1, fastalex is quicker."""
    head = (
        "case", "pass", "limit", "auto", "of limit", "triton", "torch", "/ auto", "compiled",
        "/ auto", "best peer", "", "/ auto",
    )  # fmt: skip
    rows = [head]
    for each in passes:
        times = each["medians"]
        peers = {name: time for name, time in times.items() if name not in OURS}
        best = min(peers, key=lambda name: peers[name])
        row = [each["case"], each["pass"], f"{each['limit'] * 1e3:.4f}"]
        row += [f"{times['auto'] * 1e3:.4f}", f"{each['limit'] / times['auto']:.0%}"]
        row.append(_beside(times, "triton")[0])
        row += [*_beside(times, "torch"), *_beside(times, "torch-compiled")]
        row += [best, *_beside(times, best)]
        rows.append(tuple(row))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _beside(times: dict[str, float], name: str) -> tuple[str, str]:
    if name not in times:
        return "-", "-"
    return f"{times[name] * 1e3:.4f}", f"{times[name] / times['auto']:.2f}"


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
