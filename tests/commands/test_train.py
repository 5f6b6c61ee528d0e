"""fastalex-train and fastalex-evaluate from outside: what they say, keep, refuse and survive."""

import json
import shutil
from pathlib import Path

import pytest

from fastalex.data import Dataset
from fastalex.train import evaluate_run
from fastalex.train.log import read_log

from .conftest import SMALL, finish, start


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_it_says_what_where_and_what_next(finished):
    out = (finished / "stdout.txt").read_text()
    assert "variant paper at 0.05 of its width, he initialisation, fp32, not compiled" in out
    assert "48 training and 12 validation images in 3 classes" in out
    assert f"run directory: {finished}" in out
    assert f"next:  fastalex-evaluate {finished} --ten-crop" in out
    assert "FOLDER_OF_CLASS_FOLDERS" not in out
    assert "epoch 4/4: val loss" in out
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_agrees_with_the_last_validation(call, finished, prepared):
    code, out, err = call("evaluate", finished, "--data", prepared)
    assert code == 0, err
    last = [line for line in read_log(finished) if "val_loss" in line][-1]
    assert f"top-1 error {last['top1_error']:.2%}" in out
    assert f"loss        {last['val_loss']:.4f}" in out
    assert "centre crop" in out
    code, out, err = call("evaluate", finished, "--ten-crop", "--precision", "bf16")
    assert code == 0, err
    assert "ten crops" in out
    ten = evaluate_run(finished, Dataset.open(prepared), ten_crop=True, precision="bf16")
    assert f"loss        {ten.loss:.4f}" in out


def test_evaluate_a_run_without_checkpoint(call, finished_copy):
    (finished_copy / "last.pt").unlink()
    call("evaluate", finished_copy).assert_one_line(2, "no checkpoint yet", "--resume")


def test_resume_of_a_finished_run_says_so_and_changes_nothing(call, finished_copy):
    before = (finished_copy / "model.safetensors").read_bytes()
    result = call("train", "--resume", finished_copy)
    assert result.code == 0, result.err
    assert "done:" in result.out
    assert (finished_copy / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--variant", "caffe", "was started with paper"),
        ("--batch-size", 4, "was started with 8"),
        ("--seed", 1, "was started with 0"),
        ("--recipe", "caffe", "was started with paper"),
        ("--width", 0.1, "was started with 0.05"),
        ("--init", "paper", "was started with he"),
        ("--out", "elsewhere", "--out and --resume"),
    ],
)
def test_a_resumed_run_cannot_change_these(call, finished, option, value, words):
    call("train", "--resume", finished, option, value).assert_one_line(2, words)


def test_a_checkpoint_of_another_variant(call, finished, prepared, tmp_path):
    arguments = ["--data", prepared, "--out", tmp_path / "run", *SMALL, "--init-from", finished]
    result = call("train", *arguments, "--variant", "caffe")
    assert result.code == 2
    assert "variant paper at width 0.05, this run's is caffe" in result.err
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint(call, finished_copy):
    (finished_copy / "last.pt").write_bytes(b"PK\x03\x04 not any more")
    result = call("train", "--resume", finished_copy)
    assert result.code == 1
    assert "last.pt is damaged (17 bytes): put a copy in its place, or delete" in result.err


def test_a_loss_that_is_not_finite(call, prepared, tmp_path):
    arguments = ["--data", prepared, "--out", tmp_path / "run", *SMALL]
    code, _, err = call("train", *arguments, "--lr", "1e25")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert "learning rate 1e+25" in last
    assert "at step " in last
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_shard_altered_or_missing(call, prepared, tmp_path):
    damaged = tmp_path / "dataset"
    shutil.copytree(prepared, damaged)
    shard = next(damaged.glob("train*.tar"))
    data = bytearray(shard.read_bytes())
    scan = data.index(b"\xff\xda") + 200
    data[scan : scan + 40] = bytes(40)
    shard.write_bytes(data)
    code, _, err = call("train", "--data", damaged, "--out", tmp_path / "a", *SMALL, "--steps", 6)
    assert code == 1
    assert shard.name in err.strip().splitlines()[-1]
    arguments = ["--data", damaged, "--out", tmp_path / "b", *SMALL, "--steps", 6]
    assert call("train", *arguments, "--skip-bad", 1).code == 0
    shard.unlink()
    code, _, err = call("train", "--data", damaged, "--out", tmp_path / "c", *SMALL, "--steps", 6)
    assert code == 1
    assert shard.name in err.strip().splitlines()[-1]
    assert not (tmp_path / "c").exists()


def test_a_raw_folder_is_prepared_first_and_a_relative_path_survives(
    call, pictures, tmp_path, monkeypatch
):
    (tmp_path / "images").symlink_to(pictures)
    monkeypatch.chdir(tmp_path)
    result = call("train", "--data", "images", "--out", "run", *SMALL, "--steps", 1)
    assert result.code == 0, result.err
    assert "prepar" in result.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert Path(config["data"]).is_absolute()
    assert config["recipe"] == "paper"
    monkeypatch.chdir("/")
    result = call("train", "--resume", tmp_path / "run", "--steps", 2)
    assert result.code == 0, result.err


def test_out_is_refused_before_anything_is_prepared(call, pictures, tmp_path, cache):
    (tmp_path / "mine").write_text("")
    before = sorted(cache.rglob("*"))
    shutil.copytree(pictures, tmp_path / "other")
    result = call("train", "--data", tmp_path / "other", "--out", tmp_path, *SMALL)
    result.assert_one_line(2, "--out", "not empty")
    assert sorted(cache.rglob("*")) == before


def test_init_from_may_be_relative(call, prepared, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.parent)
    arguments = ["--data", prepared, "--out", tmp_path / "run", *SMALL, "--steps", 1]
    assert call("train", *arguments, "--init-from", finished.name).code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert config["init_from"] == str(finished)


def test_the_demo_says_what_it_starts_from(call, tmp_path):
    arguments = ["--device", "cpu", "--width", "0.05", "--steps", 1]
    said = call("train", *arguments, "--out", tmp_path / "a").out
    assert "starts from He's initialisation" in said.splitlines()[1] + said.splitlines()[2]
    assert "narrower network" in said
    said = call("train", *arguments, "--out", tmp_path / "b", "--init", "paper").out
    assert "He's" not in said


def test_without_out_the_run_goes_under_runs(call, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        result = call("train", "--data", prepared, "--recipe", "caffe", *SMALL, "--steps", 1)
        assert result.code == 0, result.err
    first, second = sorted((tmp_path / "runs").iterdir())
    assert first.name.startswith("caffe-2")
    assert second.name.startswith("caffe-2")


@pytest.mark.slow
def test_the_demo_reaches_95_percent_in_five_minutes(tmp_path):
    import time

    began = time.monotonic()
    code, _, err = finish(start("train", "--device", "cpu", cwd=tmp_path), timeout=900)
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    last = [line for line in read_log(run) if "val_loss" in line][-1]
    assert last["top1_error"] <= 0.05
    assert time.monotonic() - began < 300
