"""Every setting arrives where it acts."""

from dataclasses import replace

import pytest
import torch

from fastalex.data.pipeline import train_batches
from fastalex.train import train, trainer
from fastalex.train.build import build_model
from fastalex.train.log import read_log
from fastalex.train.meter import Meter
from fastalex.train.schedule import Rates, Schedule
from fastalex.train.step import TrainStep

from .conftest import SMALL

CPU = torch.device("cpu")
RATES = Rates(weights=0.1, biases=0.2, conv1_weights=0.3, conv1_biases=0.4)


@pytest.fixture
def given(dataset, tmp_path, monkeypatch):
    """Runs one step under a config; what train_batches was given."""
    seen = {}

    def spy(dataset, format, **settings):
        seen.update(settings, format=format)
        return train_batches(dataset, format, **settings)

    monkeypatch.setattr(trainer, "train_batches", spy)

    def run(**settings):
        train(replace(SMALL, steps=1, **settings), dataset, tmp_path / "run")
        return seen

    return run


def test_the_pipeline_is_given_the_settings(given):
    seen = given(flip=False, lighting=0.25, lighting_shrink=True, skip_bad=3, seed=7, input_std=9.0)
    assert (seen["flip"], seen["lighting_shrink"]) == (False, True)
    assert (seen["skip_bad"], seen["seed"], seen["batch_size"]) == (3, 7, 8)
    assert (seen["epoch"], seen["step"]) == (0, 0)
    assert seen["lighting"](0) == 0.25
    assert seen["format"].std == 9.0


def test_original_turns_the_noise_off_at_pass_67(given):
    lighting = given(variant="original", schedule="original", lighting=0.1)["lighting"]
    assert [lighting(epoch) for epoch in (0, 66, 67, 90)] == [0.1, 0.1, 0.0, 0.0]


def one_step(**settings) -> tuple[TrainStep, float]:
    config = replace(SMALL, **settings)
    step = TrainStep(build_model(config, 3), config, CPU)
    torch.manual_seed(1)
    images = torch.randn(4, 3, 224, 224).to(memory_format=torch.channels_last)
    loss, _ = step(images, torch.tensor([0, 1, 2, 0]), RATES, 0)
    return step, loss.item()


def test_momentum_and_decay_reach_the_optimizer():
    step, _ = one_step(momentum=0.7, weight_decay=0.03, bias_decay=False)
    groups = {group["name"]: group for group in step.optimizer.param_groups}
    assert {name: float(group["lr"]) for name, group in groups.items()} == pytest.approx(
        {"weights": 0.1, "biases": 0.2, "conv1_weights": 0.3, "conv1_biases": 0.4}
    )
    assert {group["momentum"] for group in groups.values()} == {0.7}
    assert groups["weights"]["weight_decay"] == groups["conv1_weights"]["weight_decay"] == 0.03
    assert groups["biases"]["weight_decay"] == groups["conv1_biases"]["weight_decay"] == 0.0
    assert len(groups["conv1_weights"]["params"]) == len(groups["conv1_biases"]["params"]) == 1


def test_batch_norms_parameters_count_as_biases():
    step, _ = one_step(variant="batchnorm", bias_decay=False)
    groups = {group["name"]: group["params"] for group in step.optimizer.param_groups}
    assert all(parameter.ndim > 1 for parameter in groups["weights"])
    assert len(groups["weights"]) == 7
    assert len(groups["biases"]) == 5 * 2 + 3


def test_trap_7_in_a_network():
    """No gradient: what decays shrinks, biases stay."""
    config = replace(SMALL, bias_decay=False, weight_decay=0.5)
    step = TrainStep(build_model(config, 3), config, CPU)
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in step.optimizer.param_groups:
        group["lr"].fill_(0.1)
    step.optimizer.step()
    for key, value in step.model.state_dict().items():
        expected = before[key] * (1 - 0.05) if key.endswith("weight") else before[key]
        assert torch.allclose(value, expected), key


def test_label_smoothing_and_dropout_change_the_loss():
    plain = one_step(dropout=0.0)[1]
    assert one_step(dropout=0.0)[1] == plain
    assert one_step(dropout=0.0, label_smoothing=0.3)[1] != plain
    assert one_step(dropout=0.9)[1] != plain


def test_fp16_scales_the_loss_and_keeps_the_scale():
    step, _ = one_step(precision="fp16")
    assert step.scaler.is_enabled()
    assert step.scaler.get_scale() > 1
    state = step.state_dict()
    state["scaler"]["scale"] = 128.0
    other = TrainStep(build_model(replace(SMALL, precision="fp16"), 3), step.config, CPU)
    other.load_state_dict(state, origin=None)
    assert other.scaler.get_scale() == 128.0
    assert not one_step(precision="bf16")[0].scaler.is_enabled()


def test_a_resumed_step_keeps_this_runs_settings():
    step, _ = one_step(momentum=0.7, weight_decay=0.03)
    other = TrainStep(build_model(SMALL, 3), SMALL, CPU)
    rates = [group["lr"] for group in other.optimizer.param_groups]
    other.load_state_dict(step.state_dict(), origin=None)
    for group, rate in zip(other.optimizer.param_groups, rates, strict=True):
        assert group["lr"] is rate
        assert group["momentum"] == SMALL.momentum
        assert group["weight_decay"] == SMALL.weight_decay
        assert all("velocity" in other.optimizer.state[p] for p in group["params"])


def test_the_rate_of_a_step_is_the_one_before_it(dataset, tmp_path):
    config = replace(SMALL, schedule="step", step_epochs=1.0)
    train(config, dataset, tmp_path / "run")
    rates = [line["lr"] for line in read_log(tmp_path / "run") if "loss" in line]
    assert rates == pytest.approx([0.01] * 6 + [0.001] * 6)


def test_plateau_watches_the_top_1_error(dataset, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Schedule, "observe", lambda self, error: seen.append(error))
    train(SMALL, dataset, tmp_path / "run")
    assert seen == [x["top1_error"] for x in read_log(tmp_path / "run") if "val_loss" in x]


def test_images_per_second_counts_images(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fastalex.train.meter.time.monotonic", lambda: now[0])
    meter = Meter(batch_size=32, steps_per_epoch=4)
    for step in (1, 2, 3, 4):
        meter.add(step, 0.1, torch.tensor(float(step)), torch.tensor(1.0))
    now[0] += 2.0
    lines = meter.fetch()
    assert {line["images_per_s"] for line in lines} == {64.0}
    assert [line["loss"] for line in lines] == [1.0, 2.0, 3.0, 4.0]
    assert [line["epoch"] for line in lines] == [0.25, 0.5, 0.75, 1]
    assert meter.fetch() == []


def test_towers_with_different_images_are_found(monkeypatch):
    from types import SimpleNamespace

    import numpy as np

    from fastalex.errors import RunError

    class Other:
        """A world of two, whose other rank has these ids."""

        main = True

        def __init__(self, ids):
            self.crc = trainer.zlib.crc32(np.array(ids).tobytes())

        def largest(self, flags):
            theirs = torch.tensor([0, 0, self.crc, -self.crc])
            return torch.maximum(flags, theirs) if flags[2] else flags

    batch = SimpleNamespace(ids=np.array([3, 1, 4]))
    run = trainer.Trainer.__new__(trainer.Trainer)
    run.step, run.mode, run.saved_at = 6, "towers", trainer.time.monotonic()
    run.world = Other([3, 1, 4])
    assert run._agree(None, batch) == (0, False)
    assert run._agree(2, batch) == (2, False)
    for ids in ([3, 1, 5], [1, 3, 4]):
        run.world = Other(ids)
        with pytest.raises(RunError, match="different images at step 7"):
            run._agree(None, batch)
    run.mode = "data"
    assert run._agree(None, batch) == (0, False)


def test_the_slowest_rank_counts(monkeypatch):
    """Or ranks would take different ways to share a step."""
    from fastalex.train import fastest
    from fastalex.train.distributed import World

    monkeypatch.setattr(World, "largest", lambda self, numbers: numbers + 7.0)
    monkeypatch.setattr(fastest, "WARM_UP", 1)
    monkeypatch.setattr(fastest, "TIMED", 1)
    seconds = fastest._seconds(SMALL, "one", 3, World())
    assert seconds > 7.0


def test_ranks_agree_on_settings_images_and_checkpoint(dataset, tmp_path, monkeypatch):
    from fastalex.train.distributed import World

    facts = {}
    monkeypatch.setattr(World, "must_agree", lambda self, these: facts.update(these))
    train(replace(SMALL, steps=2), dataset, tmp_path / "run")
    assert facts["--lr"] == SMALL.lr
    assert "torch" in facts
    assert facts["a checkpoint of step"] == 0
    train(replace(SMALL, steps=3), dataset, tmp_path / "run", resume=True)
    assert facts["a checkpoint of step"] == 2


def test_weights_that_are_not_finite_on_another_rank_stop_this_one(dataset, tmp_path, monkeypatch):
    from fastalex.errors import RunError
    from fastalex.train.distributed import World

    gather = World.gather
    monkeypatch.setattr(
        World, "gather", lambda self, x: [x, False] if isinstance(x, bool) else gather(self, x)
    )
    with pytest.raises(RunError, match="the weights are not finite"):
        train(replace(SMALL, steps=1), dataset, tmp_path / "run")


def test_ranks_of_gpus_update_by_the_same_kernel(monkeypatch):
    from fastalex.kernels import _launch

    step, _ = one_step()
    assert not step._alike
    step._alike, modes = True, []
    monkeypatch.setattr(step, "_update", lambda: modes.append(_launch._state.mode))
    step(torch.zeros(4, 3, 224, 224), torch.tensor([0, 1, 2, 0]), RATES, 1)
    assert modes == ["triton"]
    assert _launch._state.mode == "auto"
