"""Settings: recipes as published, refusals, and the way through config.json."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastalex.errors import RunError, UsageError
from fastalex.train import TrainConfig, read_config, recipe
from fastalex.train.rundir import write_config


@pytest.mark.parametrize("name", ["demo", "paper", "original", "caffe", "modern"])
def test_every_recipe_checks_and_survives_config_json(name, tmp_path):
    config = replace(recipe(name, "cpu"), data=tmp_path / "images")
    config.check()
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config


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
        ("seed", 2**64, "--seed"),
        ("lr", 0.0, "--lr"),
        ("lr", float("nan"), "--lr"),
        ("weight_decay", float("inf"), "--weight-decay"),
        ("schedule", "linear", "--schedule"),
    ],
)
def test_refuses(field, value, flag):
    with pytest.raises(UsageError, match=f"{flag} .*{value}"):
        replace(TrainConfig(), **{field: value}).check()


def test_reading_what_is_no_run(tmp_path: Path):
    with pytest.raises(UsageError, match="not a run directory"):
        read_config(tmp_path)
    for text in ("", "[]", '{"train": {"no_such_setting": 1}}', '{"train": []}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunError, match=r"config\.json is not as fastalex wrote it"):
            read_config(tmp_path)
    write_config(TrainConfig(), tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"lr": 0.01', '"lr": "fast"'))
    with pytest.raises(RunError, match=r"config\.json is not as fastalex wrote it"):
        read_config(tmp_path)
