"""Runs the parts of the suite, each in processes of its own, within a budget of minutes.

For `python -m bench`. A part is one bench_*.py file under pytest-benchmark; its rows arrive one by
one. A process that outlasts its time is killed, and what it had not measured is said to be missing.
The compilers' caches, and fastalex's memory of what is quicker, are one folder for the run, empty
at first: the first process pays for them (the "first call" in the tables), the others find them
done.
"""

import contextlib
import datetime
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _machine import GPU, ROOT, device, versions
from _results import PARTS, merge, pool
from _session import read_rows

GRACE_SECONDS = 20.0
"""Beyond its time, for what a process is in the middle of; then it is killed."""
CORRECT = ("tests/kernels/test_on_a_gpu.py", "tests/train/test_on_a_gpu.py")


@dataclass(frozen=True)
class Part:
    file: str
    processes: int
    weight: float
    """Share of the budget."""


FILES = {
    "step": Part("bench_step.py", 3, 7.0 if GPU else 5.0),
    "inference": Part("bench_inference.py", 3, 2.0),
    "ops": Part("bench_kernels.py", 1, 3.0 if GPU else 1.5),
    "data": Part("bench_data.py", 1, 0.5 if GPU else 1.0),
    "gpus": Part("bench_gpus.py", 1, 1.0),
}
FIRST_SHARE = 0.65 if GPU else 0.5
"""Of a part's time, for its first process, which compiles and has all the gates."""


class Suite:
    """One run of the command.

    Args:
        names: the parts.
        minutes: the budget for all of them.
        path: the JSON that takes the results.
        command: how it was called, for the JSON.
    """

    def __init__(self, names: list[str], minutes: float, path: Path, command: str) -> None:
        self.names = [name for name in PARTS if name in names]
        self.end = time.monotonic() + 60 * minutes
        self.path, self.command = path, command
        self.failures: list[str] = []

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="fastalex-bench-") as folder:
            environment = caches(Path(folder))
            if GPU and not self._is_correct(environment):
                return
            for place, name in enumerate(self.names):
                weights = [FILES[each].weight for each in self.names[place:]]
                share = self.left * weights[0] / sum(weights)
                self._part(name, share, Path(folder), environment)

    def _is_correct(self, environment: dict[str, str]) -> bool:
        """The quick tests that only a GPU can run; nothing is timed where they fail."""
        tests = " ".join(CORRECT)
        say(f"first, whether it is correct: pytest {tests}")
        command = [sys.executable, "-m", "pytest", "-q", *CORRECT]
        status = run(command, environment, self.left, None)
        if status != 0:
            self.failures.append(f"pytest {tests} ended with {status}; nothing was timed")
        return status == 0

    def _part(self, name: str, seconds: float, folder: Path, environment: dict[str, str]) -> None:
        part, began, end = FILES[name], time.monotonic(), time.monotonic() + seconds
        rows = [folder / f"{name}-{number}.jsonl" for number in range(part.processes)]
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about = {"measured": started, "command": self.command, "versions": versions()}
        short = []
        try:
            for number, file in enumerate(rows):
                left = end - time.monotonic()
                last = number == part.processes - 1
                own = left if last else left * FIRST_SHARE if number == 0 else left / 2
                if left <= 0 or (number and not rows[0].exists()):
                    short.append(f"process {number + 1} of {part.processes}: no time left")
                    continue
                say(f"{name}: process {number + 1} of {part.processes}, {own:.0f} s at most")
                command = command_of(part, file, own, rows[0] if number else None)
                log = folder / f"{name}-{number}.log"
                status = run(command, environment, own + GRACE_SECONDS, log)
                short += self._judge(name, number, status, log)
        finally:  # a kill keeps what is there
            found = [read_rows(file) for file in rows]
            pooled = pool([each for each in found if each])
            taken = {"processes": sum(map(bool, found)), "seconds": round(time.monotonic() - began)}
            if pooled["rows"]:
                pooled["left_out"] = short
                merge(self.path, device(), name, about | taken | pooled)
            else:
                say(f"{name}: nothing was measured")

    def _judge(self, name: str, number: int, status: int | None, log: Path) -> list[str]:
        """What to say of a process that did not end well."""
        if status is None:
            return [f"process {number + 1}: its time was over; the rest of it is missing"]
        if status not in (0, 5):  # 5: everything was skipped or deselected
            tail = "\n".join(log.read_text().splitlines()[-25:])
            say(f"{name}: process {number + 1} ended with {status}:\n{tail}")
            self.failures.append(f"{name}: process {number + 1} ended with {status}")
            return [f"process {number + 1} ended with {status}"]
        return []


def command_of(part: Part, rows: Path, seconds: float, first: Path | None) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-s", f"bench/{part.file}"]
    command += ["--rows", str(rows), "--seconds", f"{seconds:.0f}"]
    return command + (["--first", str(first)] if first else [])


def caches(folder: Path) -> dict[str, str]:
    """The environment of the processes: compile caches that they share and nobody else has."""
    return dict(os.environ) | {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "FASTALEX_CACHE": str(folder / "fastalex"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def run(
    command: list[str], environment: dict[str, str], seconds: float, log: Path | None
) -> int | None:
    """Its exit status; None where it was killed because the time was over."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "w")) if log else None
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, start_new_session=True
        )
        with _killed_with_us(process):
            try:
                return process.wait(timeout=max(seconds, 1.0))
            except subprocess.TimeoutExpired:
                return None


@contextlib.contextmanager
def _killed_with_us(process: subprocess.Popen) -> Iterator[None]:
    """Whatever ends the block ends the process, and those it started."""
    try:
        yield
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def called() -> str:
    return shlex.join(["python", "-m", "bench", *sys.argv[1:]])
