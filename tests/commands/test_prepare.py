"""fastalex-prepare: what it prints, and its exit codes."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastalex.commands.prepare import main
from fastalex.data import Dataset


def test_the_summary_says_what_was_made_and_what_to_do_next(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(pictures), str(tmp_path / "out"), "--workers", "1"])
    dataset = Dataset.open(tmp_path / "out")
    assert len(dataset.train) == 48
    first, second, third = capsys.readouterr().out.splitlines()
    assert f"{tmp_path / 'out'}: 48 training and 12 validation images of 3 classes, " in first
    assert second == "Files refused: 0"
    assert third == f"Next: fastalex-train --data {tmp_path / 'out'}"


def test_the_summary_points_to_the_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: Path
) -> None:
    for path in pictures.rglob("*.jpg"):
        copy = tmp_path / "in" / path.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    copy.write_bytes(b"GIF89a, or so it says")
    main([str(tmp_path / "in"), str(tmp_path / "out")])
    rejected = tmp_path / "out" / "rejected.csv"
    assert f"Files refused: 1; the reasons are in {rejected}" in capsys.readouterr().out
    with open(rejected, newline="") as file:
        (name, reason) = list(csv.reader(file))[1]
    assert tmp_path / "in" / name == copy
    assert reason == "not an image"


def test_bad_usage_is_one_line_and_exit_2(call: Callable[..., Any], tmp_path: Path) -> None:
    result = call("prepare", tmp_path / "no-such", tmp_path / "out")
    result.assert_one_line(
        2, f"image folder: {tmp_path / 'no-such'} does not exist; check the path"
    )
    assert result.out == ""


def test_a_missing_argument_is_one_line_and_exit_2(call: Callable[..., Any]) -> None:
    call("prepare", "only-one").assert_one_line(2, "OUT", "fastalex-prepare --help")


def test_a_failed_run_is_one_line_and_exit_1(call: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("no picture")
    result = call("prepare", tmp_path / "in", tmp_path / "out")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("fastalex-prepare: prepare: every train image")


def test_help_names_the_options(call: Callable[..., Any]) -> None:
    result = call("prepare", "--help")
    assert result.code == 0
    for text in ("fastalex-prepare", "SOURCE", "OUT", "--workers", "CLASS/image.jpg"):
        assert text in result.out
