"""Checkpoints: there and back, and what is said of one that is not ours."""

from pathlib import Path

import pytest
import torch

from fastalex.errors import RunError, UsageError
from fastalex.train import checkpoint


def test_round_trip_with_random_states(tmp_path: Path):
    torch.manual_seed(3)
    checkpoint.save(tmp_path, {"step": 7, "random": checkpoint.random_states()})
    expected = torch.rand(4)
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 7
    checkpoint.set_random_states(state["random"])
    assert torch.equal(torch.rand(4), expected)


def test_nothing_written_yet(tmp_path: Path):
    assert checkpoint.load(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes):
    (tmp_path / checkpoint.LAST).write_bytes(content)
    with pytest.raises(RunError, match=r"last\.pt is damaged"):
        checkpoint.load(tmp_path)


def test_somebody_elses_checkpoint(tmp_path: Path):
    torch.save({"epoch": 1}, tmp_path / checkpoint.LAST)
    with pytest.raises(UsageError, match="no checkpoint of this version"):
        checkpoint.load(tmp_path)
