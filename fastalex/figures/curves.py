"""curves.png: a run's loss by step and its validation errors by pass, from its log.jsonl."""

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastalex import files

Line = dict[str, Any]
BLUE, ORANGE, GREY = "#1f6fb4", "#d9701e", "#9aa5b1"


def draw_curves(lines: list[Line], path: Path, title: str) -> None:
    """Draw a run's log lines (see `fastalex.train.log`) as a PNG of 1600 x 640 pixels.

    Raises:
        RunError: `path` cannot be written; what stood there still does.
    """
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "val_loss" in line]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, training, validation)
    _draw_error(right, validation)
    figure.suptitle(title, fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, dpi=160)
    files.write(path, png.getbuffer())


def _draw_loss(
    axes: Axes, training: list[dict[str, Any]], validation: list[dict[str, Any]]
) -> None:
    x, y = [line["epoch"] for line in training], [line["loss"] for line in training]
    axes.plot(x, y, color=GREY, linewidth=0.6, label="training, each step")
    axes.plot(x, _smooth(y), color=BLUE, linewidth=1.6, label="training, running mean")
    axes.plot(
        [line["epoch"] for line in validation],
        [line["val_loss"] for line in validation],
        color=ORANGE, marker="o", markersize=3.5, linewidth=1.6, label="validation",
    )  # fmt: skip
    axes.set(xlabel="passes over the training set", ylabel="cross-entropy (nats)", ylim=(0, None))
    _finish(axes)


def _draw_error(axes: Axes, validation: list[Line]) -> None:
    x = [line["epoch"] for line in validation]
    for key, label, color in (("top1_error", "top-1", BLUE), ("top5_error", "top-5", ORANGE)):
        y = [100 * line[key] for line in validation]
        axes.plot(x, y, color=color, marker="o", markersize=3.5, linewidth=1.6, label=label)
        if y:
            axes.annotate(
                f"{y[-1]:.1f}", (x[-1], y[-1]), xytext=(5, 3), textcoords="offset points",
                color=color, fontsize=9,
            )  # fmt: skip
    axes.set(xlabel="passes over the training set", ylabel="validation error (%)", ylim=(0, None))
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlim(0, None)
    axes.legend(frameon=False, fontsize=9)


def _smooth(values: list[float]) -> list[float]:
    """Exponential running mean over about a fiftieth of the run, without the bias of its start."""
    keep = 1 - min(1.0, 50 / max(len(values), 1))
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed
