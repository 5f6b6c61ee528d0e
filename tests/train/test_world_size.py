"""A run goes on in another number of ranks: files, images and losses are those of one process."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastalex.commands import ranks
from fastalex.train import train
from fastalex.train.log import read_log

from .conftest import SMALL, weights

MODES = ("towers", "data", "hybrid", "auto")
STEADY = replace(SMALL, lr=1e-3, batch_size=8, log_every=1)
"""So slow that twelve steps do not yet let rounding grow."""


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory) -> Path:
    """Two passes of six steps, by one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(STEADY, dataset, run)
    return run


@pytest.fixture(scope="module")
def in_turns(dataset, tmp_path_factory) -> dict[str, Path]:
    """By mode: three steps by one process, up to the eighth by two ranks, the rest by one."""
    runs = {mode: tmp_path_factory.mktemp("in_turns") / mode for mode in MODES}
    for run in runs.values():
        train(replace(STEADY, steps=3), dataset, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.fspath(Path(__file__).parents[2]))
        script = Path(__file__).with_name("two_ranks_train.py")
        ranks.run([str(script), str(dataset.root), *map(str, runs.values())], 2)
    for run in runs.values():
        assert torch.load(run / "last.pt")["step"] == 8
        train(STEADY, dataset, run, resume=True)
    return runs


@pytest.mark.parametrize("mode", MODES)
def test_the_losses_go_on_as_in_one_process(mode, alone, in_turns):
    ours, theirs = (
        {line["step"]: line for line in read_log(run) if "loss" in line}
        for run in (in_turns[mode], alone)
    )
    assert list(ours) == list(range(1, 13))
    for step, line in theirs.items():
        assert ours[step]["loss"] == pytest.approx(line["loss"], rel=1e-5), step
        assert ours[step]["lr"] == line["lr"]
        assert ours[step]["epoch"] == line["epoch"]


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_validate_as_one_process(mode, alone, in_turns):
    """12 images in batches of 8: of the last 4 each rank has two."""
    ours, theirs = (
        {line["step"]: line for line in read_log(run) if "val_loss" in line}
        for run in (in_turns[mode], alone)
    )
    assert set(theirs) < set(ours) == {3, 6, 8, 12}  # and where it was stopped
    for step, line in theirs.items():
        assert ours[step]["val_loss"] == pytest.approx(line["val_loss"], rel=1e-5)
        assert ours[step]["top1_error"] == line["top1_error"]


@pytest.mark.parametrize("mode", MODES)
def test_the_end_is_the_same(mode, alone, in_turns):
    ours, theirs = weights(in_turns[mode]), weights(alone)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (ours[name] - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("mode", MODES)
def test_the_files_are_those_of_one_process(mode, alone, in_turns):
    def names(run: Path) -> set[str]:
        return {path.name for path in run.iterdir() if "tfevents" not in path.name}

    assert names(in_turns[mode]) == names(alone)
    ours, theirs = (torch.load(run / "last.pt") for run in (in_turns[mode], alone))
    assert ours.keys() == theirs.keys()
    config = json.loads((in_turns[mode] / "config.json").read_text())["train"]
    assert config["parallel"] is None  # of the last, by one process
