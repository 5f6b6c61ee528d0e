"""curves.png from a log: drawn for any run, long, short or without a validation."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastalex.figures.curves import _smooth, draw_curves


def write_log(run: Path, steps: int, validations: int) -> None:
    training = [{"step": i, "epoch": i / 10, "loss": 2.0 / (i + 1)} for i in range(steps)]
    validation = [
        {"step": i * 10, "epoch": i, "val_loss": 1.0, "top1_error": 0.5 / i, "top5_error": 0.1 / i}
        for i in range(1, validations + 1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in training + validation))


@pytest.mark.parametrize(("steps", "validations"), [(100, 10), (1, 1), (3, 0)])
def test_draws_a_picture_with_something_in_it(tmp_path, steps, validations):
    write_log(tmp_path, steps, validations)
    path = draw_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape == (640, 1600, 3)
    blue = (np.abs(picture.astype(int) - (0x1F, 0x6F, 0xB4)).max(2) < 8).sum()
    assert blue > 20


def test_the_running_mean_follows_and_smooths():
    assert _smooth([]) == []
    assert _smooth([3.0] * 200) == pytest.approx([3.0] * 200)
    noisy = _smooth([0.0, 2.0] * 200)
    assert noisy[-1] == pytest.approx(1.0, abs=0.1)
    assert _smooth([1.0, 2.0]) == [1.0, 2.0]
