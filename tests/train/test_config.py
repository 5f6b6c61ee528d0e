"""Settings: recipes as published, refusals, and the way through config.json."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastalex.errors import RunError, UsageError
from fastalex.train import TrainConfig, read_config, recipe
from fastalex.train.config import write_config


def test_paper_recipe_is_the_papers():
    config = recipe("paper", "cpu")
    assert (config.batch_size, config.momentum, config.weight_decay) == (128, 0.9, 5e-4)
    assert (config.lr, config.schedule, config.epochs) == (0.01, "plateau", 90)
    assert (config.bias_lr_scale, config.bias_decay, config.lighting) == (1.0, True, 0.1)
    assert not config.lighting_shrink


def test_original_recipe_is_cfg_145():
    config = recipe("original", "cpu")
    assert (config.variant, config.schedule, config.epochs) == ("original", "original", 91)
    assert not config.bias_decay
    assert config.lighting_shrink


def test_caffe_recipe_is_the_solver():
    config = recipe("caffe", "cpu")
    assert (config.batch_size, config.bias_lr_scale, config.bias_decay) == (256, 2.0, False)
    assert config.lighting == 0.0


def test_modern_and_demo():
    modern, demo = recipe("modern", "cpu"), recipe("demo", "cpu")
    assert (modern.variant, modern.schedule, modern.label_smoothing) == ("batchnorm", "cosine", 0.1)
    assert (demo.init, demo.width, demo.input_std, demo.flip) == ("he", 0.25, 64.0, False)
    assert recipe("demo", "cuda").width == 1.0


@pytest.mark.parametrize("name", ["demo", "paper", "original", "caffe", "modern"])
def test_every_recipe_checks_and_survives_config_json(name, tmp_path):
    config = replace(recipe(name, "cpu"), data=tmp_path / "images")
    config.check()
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config


def test_compile_is_for_gpus():
    assert recipe("paper", "cuda").compile
    assert not recipe("paper", "cpu").compile


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("batch_size", 0, "--batch-size"),
        ("epochs", 0, "--epochs"),
        ("steps", 0, "--steps"),
        ("dropout", 1.0, "--dropout"),
        ("momentum", -0.1, "--momentum"),
        ("lighting", float("nan"), "--lighting"),
        ("width", 0.0, "--width"),
        ("seed", -1, "--seed"),
        ("log_every", 0, "--log-every"),
    ],
)
def test_refuses(field, value, flag):
    with pytest.raises(UsageError, match=f"{flag} .*{value}"):
        replace(TrainConfig(), **{field: value}).check()


def test_reading_what_is_no_run(tmp_path: Path):
    with pytest.raises(UsageError, match="not a run directory"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"train": {"no_such_setting": 1}}')
    with pytest.raises(RunError, match=r"config\.json cannot be read"):
        read_config(tmp_path)
