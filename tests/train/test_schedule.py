"""The learning rates, against the figures of the papers, solvers and logs they come from."""

from dataclasses import replace

import pytest

from fastalex.train import TrainConfig, recipe
from fastalex.train.schedule import Schedule


def rate(config: TrainConfig, epoch: float) -> float:
    return Schedule(config).rates(epoch).weights


@pytest.mark.parametrize(
    ("epoch", "weights", "conv1", "biases", "conv1_biases", "lighting"),
    [
        (0, 1e-2, 1e-2, 2e-2, 2e-2, True),
        (24.99, 1e-2, 1e-2, 2e-2, 2e-2, True),
        (25, 1e-3, 1e-3, 2e-2, 2e-2, True),
        (51, 1e-4, 1e-4, 2e-2, 2e-2, True),
        (67, 1e-4, 1e-5, 2e-2, 2e-2, False),
        (72, 1e-4, 0.0, 2e-2, 0.0, False),
        (79, 1e-5, 0.0, 2e-2, 0.0, False),
        (90.9, 1e-5, 0.0, 2e-2, 0.0, False),
    ],
)
def test_original_follows_the_notes_of_2012(epoch, weights, conv1, biases, conv1_biases, lighting):
    got = Schedule(recipe("original", "cpu")).rates(epoch)
    assert got.weights == pytest.approx(weights)
    assert got.conv1_weights == pytest.approx(conv1)
    assert got.biases == pytest.approx(biases)
    assert got.conv1_biases == pytest.approx(conv1_biases)
    assert got.lighting is lighting


def test_original_scales_with_lr():
    got = Schedule(replace(recipe("original", "cpu"), lr=0.02)).rates(51)
    assert (got.weights, got.biases) == (pytest.approx(2e-4), pytest.approx(4e-2))


def test_plateau_drops_by_ten_after_patience_and_stops_at_the_floor():
    config = TrainConfig(schedule="plateau", lr=0.01, patience=2, lr_floor=1e-4)
    schedule = Schedule(config)
    dropped = [schedule.observe(error) for error in (0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7)]
    assert dropped == [False, False, False, True, False, False, True, False, False]
    assert schedule.rates(0).weights == pytest.approx(1e-4)


def test_plateau_counts_equal_as_not_better_and_forgives_on_improvement():
    schedule = Schedule(TrainConfig(patience=2))
    assert [schedule.observe(e) for e in (0.5, 0.5, 0.4, 0.4)] == [False] * 4
    assert schedule.observe(0.4)


def test_plateau_state_survives_a_round_trip():
    config = TrainConfig(patience=2)
    schedule, other = Schedule(config), Schedule(config)
    for error in (0.5, 0.6, 0.6, 0.6):
        schedule.observe(error)
    other.load_state_dict(schedule.state_dict())
    assert other.rates(0) == schedule.rates(0)
    assert other.observe(0.6) == schedule.observe(0.6) is True


def test_only_plateau_listens():
    schedule = Schedule(TrainConfig(schedule="constant", patience=1))
    assert not any(schedule.observe(0.5) for _ in range(5))
    assert schedule.rates(0).weights == 0.01


def test_caffe_drops_every_20_of_90_passes():
    config = recipe("caffe", "cpu")
    rates = [rate(config, epoch) for epoch in (0, 19.9, 20, 40, 60, 80, 89.9)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6])
    assert Schedule(config).rates(20).biases == pytest.approx(2e-3)


def test_cosine_warms_up_and_ends_at_zero():
    config = TrainConfig(schedule="cosine", lr=1.0, epochs=25, warmup_epochs=5)
    assert 0 < rate(config, 0) < 0.01
    assert rate(config, 2.5) == pytest.approx(0.5)
    assert rate(config, 5) == pytest.approx(1.0)
    assert rate(config, 15) == pytest.approx(0.5)
    assert rate(config, 25) == pytest.approx(0.0, abs=1e-12)
    assert rate(replace(config, warmup_epochs=0), 0) == pytest.approx(1.0)
