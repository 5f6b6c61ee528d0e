"""The loop, on small pictures and narrow networks: what it learns, logs, saves and refuses."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from fastalex.errors import UsageError
from fastalex.train import train, trainer
from fastalex.train.build import build_model
from fastalex.train.log import read_log
from fastalex.train.rundir import alone

from .conftest import SMALL, assert_same_weights, weights


def test_the_run_directory_holds_what_is_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "log.jsonl", "last.pt", "model.safetensors"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if "tmp" in name]
    config = json.loads((finished / "config.json").read_text())
    assert config["train"]["width"] == 0.05
    assert set(config["versions"]) == {"fastalex", "torch"}


def test_every_step_and_every_validation_is_logged(finished):
    lines = read_log(finished)
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in training] == list(range(1, 13))
    assert set(training[0]) == {"step", "epoch", "loss", "lr", "images_per_s"}
    assert training[2]["epoch"] == 0.5
    assert training[0]["lr"] == 0.01
    assert [(line["step"], line["epoch"]) for line in validation] == [(6, 1), (12, 2)]
    assert set(validation[0]) == {"step", "epoch", "val_loss", "top1_error", "top5_error"}
    assert math.log(3) * 0.3 < training[0]["loss"] < math.log(3) * 3


def test_it_learns(dataset, tmp_path):
    metrics = train(replace(SMALL, epochs=12), dataset, tmp_path / "run")
    assert metrics.images == 12
    assert metrics.top1_error <= 1 / 12


def test_same_seed_same_weights_other_seed_others(finished, dataset, tmp_path):
    train(SMALL, dataset, tmp_path / "same")
    assert_same_weights(tmp_path / "same", finished)
    train(replace(SMALL, seed=1), dataset, tmp_path / "other")
    key = "features.0.weight"
    assert not torch.equal(weights(tmp_path / "other")[key], weights(finished)[key])


@pytest.mark.parametrize("stop", [4, 6, 9])
def test_a_run_in_two_parts_equals_one(finished, dataset, tmp_path, stop):
    """Dropout, order, crops, velocity: all go on where they were, within a pass and between two."""
    run = tmp_path / "run"
    train(replace(SMALL, steps=stop), dataset, run)
    train(SMALL, dataset, run, resume=True)
    assert_same_weights(run, finished)
    whole, parts = (
        [(line["step"], line["loss"]) for line in read_log(r) if "loss" in line]
        for r in (finished, run)
    )
    assert parts == whole


def test_plateau_drops_and_the_drop_survives_resume(dataset, tmp_path):
    config = replace(SMALL, epochs=4, schedule="plateau", patience=1, lr=1e-9, lr_floor=1e-12)
    train(config, dataset, tmp_path / "whole")  # nothing is learnt, so every pass is no better
    train(replace(config, steps=12), dataset, tmp_path / "parts")
    train(config, dataset, tmp_path / "parts", resume=True)
    for run in ("whole", "parts"):
        rates = [line["lr"] for line in read_log(tmp_path / run) if "loss" in line]
        assert rates[::6] == pytest.approx([1e-9, 1e-9, 1e-10, 1e-11])
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_within_a_pass_when_time_is_up(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    saved = []
    save = trainer.checkpoint.save
    monkeypatch.setattr(
        trainer.checkpoint,
        "save",
        lambda run, state: (saved.append(state["step"]), save(run, state)),
    )
    train(replace(SMALL, epochs=1), dataset, tmp_path / "run")
    assert saved == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(finished, dataset, tmp_path, precision):
    train(replace(SMALL, precision=precision), dataset, tmp_path / "run")
    ours, full = (
        [line["loss"] for line in read_log(run) if "loss" in line]
        for run in (tmp_path / "run", finished)
    )
    assert ours != full
    assert ours[:4] == pytest.approx(full[:4], abs=0.05)
    assert all(v.dtype == torch.float32 for v in weights(tmp_path / "run").values())


def test_compiled_training_computes_the_same(dataset, tmp_path):
    """Two steps, the rate a tenth at the second: every weight moves as it does in eager mode.

    More steps would only let rounding grow through the ReLUs.
    """
    config = replace(SMALL, dropout=0.0, steps=2, schedule="step", lr=1e-3, step_epochs=1 / 6)
    train(replace(config, compile=True), dataset, tmp_path / "compiled")
    train(config, dataset, tmp_path / "eager")
    start = build_model(config, 3).state_dict()
    compiled, eager = weights(tmp_path / "compiled"), weights(tmp_path / "eager")
    for key, value in eager.items():
        moved = value - start[key]
        assert moved.abs().max() > 0, key
        assert (compiled[key] - value).abs().max() <= 0.01 * moved.abs().max(), key


def test_a_checkpoint_of_another_variant(finished, dataset, tmp_path):
    run = tmp_path / "run"
    train(replace(SMALL, variant="batchnorm", steps=1), dataset, run)
    shutil.copy(finished / "last.pt", run / "last.pt")
    with pytest.raises(UsageError, match=r"last\.pt holds another network"):
        train(replace(SMALL, variant="batchnorm"), dataset, run, resume=True)


def test_a_checkpoint_of_other_data(finished, dataset):
    with pytest.raises(UsageError, match="trained on other images"):
        train(SMALL, replace(dataset, fingerprint="0" * 64), finished, resume=True)


def test_a_directory_in_use_is_refused(finished, dataset, tmp_path):
    with pytest.raises(UsageError, match="--resume"):
        train(SMALL, dataset, finished)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        train(SMALL, dataset, tmp_path)


def test_what_cannot_run_leaves_nothing_behind(dataset, tmp_path):
    for wrong in ({"batch_size": 49}, {"gpus": 64}, {"init": "magic"}, {"momentum": 2.0}):
        with pytest.raises(UsageError):
            train(replace(SMALL, **wrong), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bias_rate_and_decay_reach_the_biases(dataset, tmp_path):
    """With a rate that only the biases have, only biases move."""
    config = replace(SMALL, lr=1e-12, bias_lr_scale=1e10, steps=1, weight_decay=0.0)
    train(config, dataset, tmp_path / "run")
    start = build_model(config, 3).state_dict()
    for key, value in weights(tmp_path / "run").items():
        moved = (value - start[key]).abs().max().item()
        assert (moved > 1e-6) == key.endswith("bias"), (key, moved)


def test_original_freezes_conv1_late(dataset):
    from fastalex.train.schedule import Schedule
    from fastalex.train.step import TrainStep

    config = replace(SMALL, variant="original", schedule="original", bias_decay=False)
    step = TrainStep(build_model(config, 3), config, torch.device("cpu"))
    images, labels = torch.randn(4, 3, 224, 224), torch.tensor([0, 1, 2, 0])
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    step(images, labels, Schedule(config).rates(75.0), 0)
    moved = {k for k, v in step.model.state_dict().items() if not torch.equal(v, before[k])}
    assert "features.0.weight" not in moved
    assert "features.0.bias" not in moved
    assert "features.4.weight" in moved
    decays = {group["name"]: group["weight_decay"] for group in step.optimizer.param_groups}
    assert decays == {
        "weights": 5e-4, "biases": 0.0, "conv1_weights": 5e-4, "conv1_biases": 0.0
    }  # fmt: skip


def test_the_weights_file_is_the_same_bytes_for_the_same_run(finished, dataset, tmp_path):
    train(SMALL, dataset, tmp_path / "run")
    ours, theirs = (run / "model.safetensors" for run in (tmp_path / "run", finished))
    assert ours.read_bytes() == theirs.read_bytes()


def test_fewer_steps_than_were_made_are_refused(finished, dataset):
    with pytest.raises(UsageError, match="has made 12 steps already, more than the 3 asked for"):
        train(replace(SMALL, steps=3), dataset, finished, resume=True)


def test_two_processes_do_not_share_a_run(finished, dataset):
    with (
        alone(finished),
        pytest.raises(UsageError, match="another process is training here"),
    ):
        train(SMALL, dataset, finished, resume=True)


@pytest.mark.parametrize("change", [{"batch_size": 4}, {"seed": 1}, {"input_std": 1.0}])
def test_what_a_resumed_run_cannot_change(finished, dataset, change):
    with pytest.raises(UsageError, match="was started with"):
        train(replace(SMALL, **change), dataset, finished, resume=True)
