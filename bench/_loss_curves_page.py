"""What bench/loss_curves.py concludes from a file of losses, in words and as a table; the page.

For that script and for the test that holds docs/training.md against the file.
"""

import re
import statistics
import textwrap
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


def split(
    kept: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The fp32 run, those of lower precision, and those of fp32 with other seeds."""
    first, *rest = kept["runs"]
    seeds = [run for run in rest if run["seed"] != first["seed"]]
    return first, [run for run in rest if run not in seeds], seeds


def verdict(kept: dict[str, Any]) -> str:
    """One sentence: how far low precision is from fp32, and how far other seeds are."""
    first, low, seeds = split(kept)
    base = last_loss(first)
    scale = max(abs(last_loss(run) - base) for run in seeds)
    most = max(abs(last_loss(run) - base) for run in low)
    parts = [f"{last_loss(run):.4f} in {run['name']} ({last_loss(run) - base:+.4f})" for run in low]
    errors = [f"{_percent(error(run))} in {run['name']}" for run in (first, *low)]
    steps = len(first["losses"])
    return (
        f"Over the last {LAST} of {steps} steps the mean loss is {base:.4f} in fp32, "
        f"{', '.join(parts)}, while other seeds move it by up to {scale:.4f}, and of "
        f"{kept['validation_images']} validation images {', '.join(errors)} are wrong "
        f"({', '.join(_percent(error(run)) for run in seeds)} with the other seeds): "
        f"precision moves the loss by {'no more' if most <= scale else 'more'} than the seed does."
    )


def section(kept: dict[str, Any], name: str) -> str:
    """The part of the page that is drawn from the file of losses `name`."""
    first = kept["runs"][0]
    rows = [
        f"| {run['name']} | {last_loss(run):.4f} | "
        f"{'' if run is first else format(last_loss(run) - last_loss(first), '+.4f')} | "
        f"{_percent(error(run))} |"
        for run in kept["runs"]
    ]
    return "\n".join([
        "![The demo's loss in each precision, and its distance from fp32](precision.png)",
        "",
        f"On {kept['device']}, torch {kept['versions']['torch']}, by `{kept['command']}`",
        f"([all losses](../bench/results/{name})):",
        "",
        f"| | mean loss of the last {LAST} steps | from fp32 | validation error |",
        "|---|---|---|---|",
        *rows,
        "",
        textwrap.fill(kept["verdict"], 100, break_on_hyphens=False),
        "",
    ])  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def read(page: Path) -> str:
    """The section that stands in the page."""
    found = re.search(_MARKS, page.read_text(), flags=re.DOTALL)
    assert found, f"{page} has no place for the losses"
    return found[2]


def write(section: str, page: Path) -> None:
    read(page)
    new = re.sub(_MARKS, lambda m: f"{m[1]}{section}{m[3]}", page.read_text(), flags=re.DOTALL)
    page.write_text(new)
