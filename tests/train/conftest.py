"""Small runs on small pictures: what the tests of training share."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastalex.data import Dataset
from fastalex.train.config import TrainConfig

SMALL = TrainConfig(
    width=0.05, init="he", input_std=64.0, batch_size=8, epochs=2, lr=0.01, schedule="constant",
    precision="fp32", compile=False, device="cpu", log_every=4, lighting=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset.open(prepared)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> Path:
    """A run of SMALL, 2 passes of 6 steps, never interrupted."""
    from fastalex.train import train  # needs DALI, which the tests of a step do not

    run = tmp_path_factory.mktemp("runs") / "finished"
    train(SMALL, dataset, run)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
