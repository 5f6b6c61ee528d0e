"""What a run keeps when it goes wrong or is cut short, and what it refuses to keep."""

import math
from dataclasses import replace

import pytest

from fastalex.errors import RunError
from fastalex.train import Metrics, train, trainer
from fastalex.train.log import read_log

from .conftest import SMALL, assert_same_weights


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tmp_path):
    run = tmp_path / "run"
    config = replace(SMALL, lr=1e25, epochs=3)
    with pytest.raises(RunError, match=r"at step \d+, learning rate 1e\+25; no che"):
        train(config, dataset, run)
    assert not (run / "last.pt").exists()
    assert all(math.isfinite(line["loss"]) for line in read_log(run))


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(finished, dataset, tmp_path):
    run = tmp_path / "run"
    train(replace(SMALL, epochs=1), dataset, run)
    before = (run / "last.pt").read_bytes()
    with pytest.raises(RunError, match=r"the last good checkpoint is .*run/last\.pt"):
        train(replace(SMALL, lr=1e25, epochs=3), dataset, run, resume=True)
    assert (run / "last.pt").read_bytes() == before
    train(SMALL, dataset, run, resume=True)
    assert_same_weights(run, finished)


def test_a_ruined_network_is_never_saved(dataset, tmp_path):
    """The loss of a step is older than its update: the weights themselves are looked at."""
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"at step 1, learning rate 1e\+25; no checkpoint was due"):
        train(replace(SMALL, lr=1e25, steps=1), dataset, run)
    assert not (run / "last.pt").exists()
    assert not (run / "model.safetensors").exists()


def test_a_validation_loss_that_is_not_finite_stops_the_run(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "evaluate", lambda *a, **k: Metrics(math.inf, 1.0, 1.0, 12))
    with pytest.raises(RunError, match="the validation loss is inf at step 6"):
        train(SMALL, dataset, tmp_path / "run")
    assert not [line for line in read_log(tmp_path / "run") if "val_loss" in line]


def test_a_kill_between_the_two_files_loses_nothing(finished, dataset, tmp_path, monkeypatch):
    run = tmp_path / "run"
    save = trainer.checkpoint.save

    def killed(path, state):
        if state["step"] == 12:
            raise KeyboardInterrupt
        save(path, state)

    monkeypatch.setattr(trainer.checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, dataset, run)
    monkeypatch.undo()
    train(SMALL, dataset, run, resume=True)
    assert_same_weights(run, finished)


def test_the_last_validation_cannot_lose_the_training(dataset, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, steps=4), dataset, tmp_path / "run")
    state = trainer.checkpoint.load(tmp_path / "run")
    assert state is not None
    assert state["step"] == 4


def test_a_run_resumed_at_its_end_says_what_it_said(dataset, tmp_path):
    run = tmp_path / "run"
    config = replace(SMALL, steps=4)
    before = train(config, dataset, run)
    assert train(config, dataset, run, resume=True) == before
    assert [line["step"] for line in read_log(run) if "val_loss" in line] == [4]
