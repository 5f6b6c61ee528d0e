"""Every recipe, every field: what is not the paper's is listed here."""

import pytest
import torch

from fastalex.train import TrainConfig, recipe

PAPER = {
    "recipe": "paper", "data": None, "variant": "paper", "width": 1.0, "init": None,
    "dropout": 0.5, "input_std": None, "gpus": 1, "device": "auto", "batch_size": 128,
    "epochs": 90, "steps": None, "lr": 0.01, "schedule": "plateau", "patience": 3,
    "lr_floor": 1e-5, "step_epochs": 20.0, "warmup_epochs": 0.0, "momentum": 0.9,
    "weight_decay": 5e-4, "bias_lr_scale": 1.0, "bias_decay": True, "label_smoothing": 0.0,
    "lighting": 0.1, "lighting_shrink": False, "flip": True, "seed": 0, "precision": "bf16",
    "compile": True, "init_from": None, "skip_bad": 0, "log_every": 10, "parallel": None,
    "micro_batches": None, "timeout": 300.0,
}  # fmt: skip
DIFFERENT = {
    "paper": {},
    "original": {
        "variant": "original", "schedule": "original", "epochs": 91, "bias_lr_scale": 2.0,
        "bias_decay": False, "lighting_shrink": True,
    },
    "caffe": {
        "variant": "caffe", "batch_size": 256, "schedule": "step", "bias_lr_scale": 2.0,
        "bias_decay": False, "lighting": 0.0,
    },
    "modern": {
        "variant": "batchnorm", "batch_size": 1024, "lr": 0.08, "schedule": "cosine",
        "warmup_epochs": 5.0, "weight_decay": 5e-5, "bias_decay": False, "label_smoothing": 0.1,
    },
    "demo": {
        "init": "he", "input_std": 64.0, "batch_size": 32, "epochs": 12, "schedule": "cosine",
        "lighting": 0.0, "flip": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_on_a_gpu(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert recipe(name, "cuda").to_json() == PAPER | {"recipe": name} | DIFFERENT[name]


def test_a_gpu_without_bf16_takes_fp16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert recipe("paper", "cuda").precision == "fp16"


@pytest.mark.parametrize("name", DIFFERENT)
def test_on_a_cpu_nothing_is_compiled_and_the_demo_is_narrower(name):
    got = recipe(name, "cpu").to_json()
    assert got.pop("precision") in ("bf16", "fp32")
    expected = PAPER | {"recipe": name} | DIFFERENT[name] | {"compile": False}
    del expected["precision"]
    assert got == expected | ({"width": 0.25} if name == "demo" else {})


def test_the_defaults_are_the_papers():
    assert TrainConfig().to_json() == PAPER
