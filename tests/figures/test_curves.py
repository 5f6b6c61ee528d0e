"""curves.png from a log: drawn for any run, long, short or without a validation."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fastalex.errors import RunError
from fastalex.figures.curves import _draw_error, _draw_loss, _smooth, draw_curves


def log(steps: int, validations: int) -> list[dict]:
    training = [{"step": i, "epoch": i / 10, "loss": 2.0 / (i + 1)} for i in range(steps)]
    validation = [
        {"step": i * 10, "epoch": i, "val_loss": 1.0, "top1_error": 0.5 / i, "top5_error": 0.1 / i}
        for i in range(1, validations + 1)
    ]
    return training + validation


@pytest.mark.parametrize(("steps", "validations"), [(100, 10), (1, 1), (3, 0), (0, 0)])
def test_draws_a_picture_for_any_log(tmp_path, steps, validations):
    draw_curves(log(steps, validations), tmp_path / "curves.png", "a run")
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).shape == (640, 1600, 3)


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"absent/curves\.png cannot be written \(No such file"):
        draw_curves(log(3, 1), tmp_path / "absent" / "curves.png", "a run")


def test_the_curves_are_the_logs():
    left, right = Figure().subplots(1, 2)
    lines = log(100, 4)
    _draw_loss(left, lines[:100], lines[100:])
    _draw_error(right, lines[100:])
    losses = {line.get_label(): line for line in left.get_lines()}
    assert list(losses["training, each step"].get_ydata()) == [2.0 / (i + 1) for i in range(100)]
    assert list(losses["validation"].get_xdata()) == [1, 2, 3, 4]
    errors = {line.get_label(): list(line.get_ydata()) for line in right.get_lines()}
    assert errors["top-1"] == pytest.approx([50, 25, 50 / 3, 12.5])
    assert errors["top-5"] == pytest.approx([10, 5, 10 / 3, 2.5])


def test_the_running_mean_follows_and_smooths():
    assert _smooth([]) == []
    assert _smooth([3.0] * 200) == pytest.approx([3.0] * 200)
    noisy = _smooth([0.0, 2.0] * 200)
    assert noisy[-1] == pytest.approx(1.0, abs=0.1)
    assert _smooth([1.0, 2.0]) == [1.0, 2.0]
