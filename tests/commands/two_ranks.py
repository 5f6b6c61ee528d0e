"""Ways to start two ranks of fastalex-train, one of them broken, and what to look for afterwards.

For the tests of this folder. What breaks a rank is faults/sitecustomize.py.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from fastalex.train.log import read_log

from .conftest import ROOT, Result, start

FAULTS = Path(__file__).with_name("faults")


def environment(fault: str = "none 0", **more: object) -> dict[str, str]:
    path = os.pathsep.join([str(FAULTS), str(ROOT)])
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FAULT": fault}
    return own | {name: str(value) for name, value in more.items()}


def by_hand(number: int, port: int, *arguments: object, fault: str = "none 0") -> subprocess.Popen:
    """One rank of two, as a person, or Slurm, would start it."""
    where = {"RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return start("train", *arguments, environment=environment(fault, **where))


def by_torchrun(*arguments: object, fault: str = "none 0") -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", "--no-python"]
    command += [sys.executable, "-c", "from fastalex.commands import launch; launch.train()"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=os.environ | environment(fault),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def complaints(result: Result) -> list[str]:
    """stderr without the progress."""
    lines = result.err.strip().splitlines()
    return [line for line in lines if not re.match(r"step \d+/\d+: loss ", line)]


def assert_none_left(run: Path) -> None:
    """No process has `run` among its arguments."""
    left = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (folder / "cmdline").read_bytes():
                left.append(folder.name)
        except OSError:  # ended meanwhile
            continue
    assert not left


def log_of(run: Path) -> list[dict]:
    """All but the speed."""
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_log(run)]
