"""What bench/loss_curves.py concludes from a file of losses, in words and as a table; the page.

For that script and for the test that holds docs/training.md against the file.
"""

import re
import statistics
from pathlib import Path
from typing import Any

LAST = 50
"""Steps at the end whose mean loss is compared."""

_MARKS = r"(<!-- losses by bench/loss_curves.py -->\n)(.*?)(<!-- end of losses -->)"


def last_loss(run: dict[str, Any]) -> float:
    return statistics.mean(run["losses"][-LAST:])


def error(run: dict[str, Any]) -> float:
    """The last validation's top-1 error, as a fraction."""
    return run["validation"][-1]["top1_error"]


def verdict(kept: dict[str, Any]) -> str:
    """One sentence: what each low precision is away from fp32, and what another seed is."""
    first, *low, other = kept["runs"]
    base = last_loss(first)
    scale = abs(last_loss(other) - base)
    parts = [
        f"{run['name']} is {last_loss(run) - base:+.4f} away from fp32 "
        f"({last_loss(run):.4f} and {base:.4f}; validation error {error(run):.2%} and "
        f"{error(first):.2%})"
        for run in low
    ]
    harmless = all(abs(last_loss(run) - base) <= scale for run in low)
    return (
        f"Over the last {LAST} of {len(first['losses'])} steps the mean loss in "
        f"{', in '.join(parts)}; another seed in fp32 is {last_loss(other) - base:+.4f} "
        f"away ({error(other):.2%}): precision moves the result by "
        f"{'less' if harmless else 'more'} than the seed does."
    )


def section(kept: dict[str, Any], name: str) -> str:
    """The part of the page that is drawn from the file of losses `name`."""
    first = kept["runs"][0]
    rows = [
        f"| {run['name']} | {last_loss(run):.4f} | "
        f"{'' if run is first else format(last_loss(run) - last_loss(first), '+.4f')} | "
        f"{error(run):.2%} |"
        for run in kept["runs"]
    ]
    return "\n".join([
        "![The demo's loss in each precision, and its distance from fp32](precision.png)",
        "",
        f"On {kept['device']}, torch {kept['versions']['torch']} "
        f"([all losses](../bench/results/{name}), `{kept['command']}`):",
        "",
        f"| | mean loss of the last {LAST} steps | from fp32 | validation error |",
        "|---|---|---|---|",
        *rows,
        "",
        kept["verdict"],
        "",
    ])  # fmt: skip


def read(page: Path) -> str:
    """The section that stands in the page."""
    found = re.search(_MARKS, page.read_text(), flags=re.DOTALL)
    assert found, f"{page} has no place for the losses"
    return found[2]


def write(section: str, page: Path) -> None:
    read(page)
    new = re.sub(_MARKS, lambda m: f"{m[1]}{section}{m[3]}", page.read_text(), flags=re.DOTALL)
    page.write_text(new)
