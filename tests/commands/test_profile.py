"""fastalex-profile: whose step it times, and what it says."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from fastalex.commands import profile as command
from fastalex.model import VARIANTS
from fastalex.profile import measure
from fastalex.profile.clock import Clock, Limits
from fastalex.train import TrainConfig
from fastalex.train.build import build_model
from fastalex.train.rundir import write_config

from .conftest import ROOT

CONFIG = TrainConfig(width=0.05, batch_size=3, precision="fp32", compile=False, seed=7)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measure, "limits", lambda *_: Limits(flops_per_s=1e9, bytes_per_s=1e8))
    monkeypatch.setattr(Clock, "rounds", lambda self, first: 1)


@pytest.fixture
def run(tmp_path):
    """A run of two GPUs, with weights of 5 classes."""
    path = tmp_path / "run"
    path.mkdir()
    write_config(TrainConfig(**{**CONFIG.to_json(), "gpus": 2}), path)
    weights = build_model(CONFIG, 5).state_dict()
    save_file({k: (v + 1).contiguous() for k, v in weights.items()}, path / "model.safetensors")
    return path


def test_a_run(call, run, tmp_path):
    file = tmp_path / "profile.json"
    before = {path: path.read_bytes() for path in run.iterdir()}
    result = call("profile", run, "--device", "cpu", "--json", file)
    assert result.code == 0, result.err
    assert "the run had 2 GPUs; this is the network as one process has it" in result.out
    assert "variant paper at 0.05 of its width, fp32, batch 3, on the CPU" in result.out
    for name in ("conv1+relu", "norm1+pool1", "fc6+relu+dropout", "optimizer", "whole step"):
        assert f"\n{name} " in result.out
    kept = json.loads(file.read_text())
    assert (kept["config"]["gpus"], kept["config"]["seed"]) == (1, 7)
    assert kept["rows"][-2]["passes"]["forward"]["moved"] == 4 * 3 * 5  # logits of its 5 classes
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_runs_weights_are_taken(run):
    ours = command._model(CONFIG, run).state_dict()
    for key, value in build_model(CONFIG, 5).state_dict().items():
        assert torch.equal(value + 1, ours[key])


def test_a_run_without_weights_and_other_options(call, run):
    (run / "model.safetensors").unlink()
    result = call("profile", run, "--device", "cpu", "--batch-size", 2, "--precision", "bf16")
    assert "bf16, batch 2" in result.out


def test_weights_that_cannot_be_read(call, run):
    (run / "model.safetensors").write_bytes(b"torn")
    call("profile", run, "--device", "cpu").assert_one_line(1, "model.safetensors cannot be read")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_its_recipe(variant):
    config = command._recipe_for(variant, torch.device("cpu"))
    others = {"batchnorm": "modern", "caffe": "caffe", "original": "original"}
    assert (config.variant, config.recipe) == (variant, others.get(variant, "paper"))
    assert config.batch_size == {"batchnorm": 1024, "caffe": 256}.get(variant, 128)


def test_a_gpu_without_memory(call, run, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(command, "profile", full)
    result = call("profile", run, "--device", "cpu", "--batch-size", 999)
    result.assert_one_line(1, "--batch-size 999", "not enough memory", "smaller")


def test_options_in_the_documents_exist():
    known = {f"--{name.replace('_', '-')}" for name in command.Options.__dataclass_fields__}
    for path in (ROOT / "README.md", ROOT / "docs" / "profile.md"):
        lines = re.findall(r"fastalex-profile[^\n`#]*", path.read_text())
        assert lines, path
        for line in lines:
            assert set(re.findall(r"--[a-z][a-z-]+", line)) <= known, line
