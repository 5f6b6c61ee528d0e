"""Checkpoints: there and back, and what is said of one that is not ours."""

from pathlib import Path

import pytest
import torch

from fastalex.errors import RunError, UsageError
from fastalex.train import checkpoint


def test_round_trip(tmp_path: Path):
    weights = torch.rand(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, {"step": 7, "model": {"weight": weights}})
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 7
    loaded = state["model"]["weight"]
    assert torch.equal(loaded, weights)
    assert loaded.stride() == weights.stride()


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
