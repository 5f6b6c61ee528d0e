"""docs/precision.png, from a file of losses alone. For bench/loss_curves.py."""

from pathlib import Path
from typing import Any

import numpy as np
from _loss_curves_page import split
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WINDOW = 25
"""Steps of the running mean."""
COLORS = {"fp32": "#1f6fb4", "bf16": "#d9701e", "fp16": "#3a8f5c"}
GREY = "#9aa5b1"


def draw(kept: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(above, kept["runs"])
    _draw_differences(below, kept)
    config = kept["config"]
    figure.suptitle(
        f"{config['recipe']}, batch {config['batch_size']}, {kept['device']}", fontsize=11
    )
    figure.savefig(path, dpi=140)


def _draw_losses(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """The scale follows the running means; single steps may leave it."""
    for run in runs[::-1]:  # what matters on top
        color = COLORS.get(run["name"], GREY)
        axes.plot(_steps(run["losses"]), run["losses"], color=color, linewidth=0.5, alpha=0.35)
        smooth = _smooth(run["losses"])
        axes.plot(_steps(run["losses"])[WINDOW - 1 :], smooth, color=color, linewidth=1.6,
                  label=run["name"])  # fmt: skip
    axes.set(ylabel="cross-entropy (nats)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=min(_smooth(run["losses"]).min() for run in runs) / 5)
    _finish(axes)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9, loc="upper right")


def _draw_differences(axes: Axes, kept: dict[str, Any]) -> None:
    """Of the running means; the seeds' stands on both sides, since its sign is chance."""
    first, low, seeds = split(kept)
    steps, base = _steps(first["losses"])[WINDOW - 1 :], _smooth(first["losses"])
    spread = np.max([np.abs(_smooth(run["losses"]) - base) for run in seeds], axis=0)
    axes.fill_between(
        steps, -spread, spread, color=GREY, alpha=0.35, linewidth=0, label="fp32, other seeds"
    )
    for run in low:
        axes.plot(steps, _smooth(run["losses"]) - base, color=COLORS[run["name"]], linewidth=1.6,
                  label=run["name"])  # fmt: skip
    axes.axhline(0, color=COLORS["fp32"], linewidth=1)
    axes.set(xlabel="step", ylabel="away from fp32 (nats)")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlim(0, None)
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _steps(losses: list[float]) -> np.ndarray:
    return np.arange(1, len(losses) + 1)


def _smooth(losses: list[float]) -> np.ndarray:
    """The running mean over WINDOW steps; it ends at the step at which it stands."""
    return np.convolve(losses, np.ones(WINDOW) / WINDOW, mode="valid")
