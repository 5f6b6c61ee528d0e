"""bench/loss_curves.py: what it trains, what it concludes, and that docs/training.md says that."""

import json
import re
from dataclasses import replace
from pathlib import Path

import _loss_curves_page as page
import loss_curves
import pytest
from _loss_curves_picture import draw

from fastalex.data import Dataset
from fastalex.train import TrainConfig

SMALL = TrainConfig(
    width=0.05, init="he", input_std=64.0, batch_size=8, epochs=1, steps=2, lr=0.01, lighting=0.0,
    schedule="constant", precision="bf16", compile=False, device="cpu", seed=5,
)  # fmt: skip


def a_run(name: str, seed: int, last: float, error: float) -> dict:
    """60 steps, of which the last 50 have the loss `last`."""
    losses = [9.0] * 10 + [last] * 50
    return {"name": name, "seed": seed, "losses": losses, "validation": [{"top1_error": error}]}


@pytest.fixture
def kept() -> dict:
    return {
        "device": "a device", "versions": {"torch": "2.0"}, "command": "a command",
        "validation_images": 200, "config": {"recipe": "demo", "batch_size": 32},
        "runs": [
            a_run("fp32", 0, 0.5, 0.05), a_run("bf16", 0, 0.52, 0.06),
            a_run("fp16", 0, 0.49, 0.05), a_run("fp32, seed 1", 1, 0.47, 0.04),
            a_run("fp32, seed 2", 2, 0.51, 0.055),
        ],
    }  # fmt: skip


def test_the_verdict_follows_from_the_numbers(kept):
    said = page.verdict(kept)
    assert "Over the last 50 of 60 steps the mean loss is 0.5000 in fp32" in said
    assert "0.5200 in bf16 (+0.0200), 0.4900 in fp16 (-0.0100)" in said
    assert "other seeds move it by up to 0.0300" in said
    assert "200 validation images 5.00 % in fp32, 6.00 % in bf16, 5.00 % in fp16 are wrong" in said
    assert "(4.00 %, 5.50 % with the other seeds)" in said
    assert said.endswith("by no more than the seed does.")
    kept["runs"][1]["losses"][-50:] = [0.54] * 50
    assert page.verdict(kept).endswith("by more than the seed does.")


def test_the_runs_are_alike_but_for_precision_or_seed():
    on_cpu = {"fp32": ("fp32", 7), "bf16": ("bf16", 7)}
    seeds = {"fp32, seed 8": ("fp32", 8), "fp32, seed 9": ("fp32", 9)}
    for on_gpu, low in ((False, {}), (True, {"fp16": ("fp16", 7)})):
        runs = loss_curves.settings_of_runs(on_gpu, 7)
        assert {n: (s["precision"], s["seed"]) for n, s in runs.items()} == on_cpu | low | seeds
        assert next(iter(runs)) == "fp32"
        assert {key for settings in runs.values() for key in settings} == {"precision", "seed"}


def test_a_run_keeps_the_trainers_losses(prepared):
    dataset = Dataset.open(prepared)
    got = loss_curves.one_run(SMALL, dataset)
    assert (got["precision"], got["seed"]) == ("bf16", 5)
    assert len(got["losses"]) == len(set(got["losses"])) == 2
    assert 0 <= got["validation"][-1]["top1_error"] <= 1
    assert got["losses"] != loss_curves.one_run(replace(SMALL, precision="fp32"), dataset)["losses"]


def test_the_picture_is_drawn_from_the_file_alone(kept, tmp_path):
    path = tmp_path / "precision.png"
    draw(json.loads(json.dumps(kept)), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_says_what_the_file_holds():
    section = page.read(loss_curves.PAGE)
    (name,) = set(re.findall(r"bench/results/(losses-[\w.-]+\.json)\)", section))
    kept = json.loads((Path(loss_curves.RESULTS) / name).read_text())
    assert kept["verdict"] == page.verdict(kept)
    assert section == page.section(kept, name)
    assert [len(run["losses"]) for run in kept["runs"]] == [500] * len(kept["runs"])


def test_writing_the_page_changes_the_section_alone(tmp_path):
    path = tmp_path / "page.md"
    text = loss_curves.PAGE.read_text()
    path.write_text(text)
    page.write("new\n", path)
    assert path.read_text() == text.replace(page.read(loss_curves.PAGE), "new\n")
