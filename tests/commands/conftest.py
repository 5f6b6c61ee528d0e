"""Two ways to call a command: in this process (quick), or as one of its own (for signals)."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastalex.commands import launch

ROOT = Path(__file__).parents[2]
SMALL = [
    "--device", "cpu", "--width", "0.05", "--init", "he", "--input-std", "64", "--batch-size", "8",
    "--precision", "fp32", "--no-compile", "--log-every", "1",
]  # fmt: skip


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def assert_one_line(self, code: int, *words: str) -> None:
        """The exit code, and one line on stderr that has all the words."""
        assert self.code == code, self.err
        assert len(self.err.strip().splitlines()) == 1, self.err
        for word in words:
            assert word in self.err, self.err


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Callable[..., Result]]:
    """`call("train", "--epochs", 1)`: the command, in this process."""

    def _call(name: str, *arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", [f"fastalex-{name}", *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            getattr(launch, name)()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        return Result(code, *capsys.readouterr())

    before = signal.getsignal(signal.SIGTERM)
    yield _call
    signal.signal(signal.SIGTERM, before)


def start(name: str, *arguments: object, **options) -> subprocess.Popen:
    """The command as a process of its own; `environment` adds to its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
    return subprocess.Popen(
        [sys.executable, "-c", f"from fastalex.commands import launch; launch.{name}()",
         *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen, timeout: float = 180) -> Result:
    out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out, err)


@pytest.fixture(scope="session")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four passes of six steps, never interrupted; stdout.txt has what was said."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    code, out, err = finish(start("train", "--data", prepared, "--out", run, *SMALL, "--epochs", 4))
    assert code == 0, err
    (run / "stdout.txt").write_text(out)
    return run
