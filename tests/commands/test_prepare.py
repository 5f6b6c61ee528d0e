"""fastalex-prepare: what it prints, and its exit codes."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from fastalex.commands.prepare import main
from fastalex.data import Dataset

ROOT = Path(__file__).parents[2]


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


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = "import fastalex.commands as c; c.prepare()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_bad_usage_is_one_line_and_exit_2(tmp_path: Path) -> None:
    ran = run(tmp_path / "no-such", tmp_path / "out")
    assert ran.returncode == 2
    assert ran.stdout == ""
    line = (
        f"fastalex-prepare: image folder: {tmp_path / 'no-such'} does not exist; check the path\n"
    )
    assert ran.stderr == line


def test_a_missing_argument_is_one_line_and_exit_2() -> None:
    ran = run("only-one")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "OUT" in ran.stderr or "out" in ran.stderr
    assert "fastalex-prepare --help" in ran.stderr


def test_help_names_the_options() -> None:
    ran = run("--help")
    assert ran.returncode == 0
    for text in ("fastalex-prepare", "SOURCE", "OUT", "--workers", "CLASS/image.jpg"):
        assert text in ran.stdout
