"""`fastalex-train --gpus 2`, each way to share a step, beside one GPU: images a second of the demo.

    python -m bench gpus

The command itself is run for some steps, and `images_per_s` read from its log.jsonl; a sample is
one fetch of the log, the first (which compiles) left out. With fewer than two GPUs it runs on
processes of the CPU: that shows that it works, no speed.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _machine import ROOT
from _session import Session

from fastalex.train.log import read_log

HAVE_TWO = torch.cuda.is_available() and torch.cuda.device_count() > 1
STEPS, FETCH, BATCH = (400, 40, 512) if HAVE_TWO else (12, 2, 16)
WAYS = [(1, "-"), (2, "towers"), (2, "data"), (2, "hybrid")]
MAIN = "import sys; from fastalex.commands.launch import train; sys.exit(train())"


@pytest.mark.parametrize(("gpus", "parallel"), WAYS, ids=[f"{n}-{way}" for n, way in WAYS])
def bench_gpus(gpus: int, parallel: str, session: Session, benchmark, tmp_path: Path) -> None:
    row = {"part": "gpus", "key": f"{gpus} {parallel}", "gpus": gpus, "parallel": parallel}
    row |= {"device": "cuda" if HAVE_TWO else "cpu", "batch": BATCH, "images": BATCH}
    row |= {"providers": {}, "failed": {}, "left_out": {}}
    if session.left <= 0:
        row["left_out"] = {"all": "no time left"}
        session.write(row)
        pytest.skip("no time left")
    run = tmp_path / "run"
    command = [sys.executable, "-c", MAIN, "--recipe", "demo", "--out", str(run)]
    command += ["--steps", str(STEPS), "--log-every", str(FETCH), "--batch-size", str(BATCH)]
    command += ["--gpus", str(gpus), "--device", row["device"]]
    command += [] if gpus == 1 else ["--parallel", parallel]

    def train() -> None:
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False,
            timeout=min(max(session.left, 1), 1e6),
        )  # fmt: skip
        if ran.returncode:
            row["failed"] = {"fastalex": (ran.stderr.strip().splitlines() or ["no message"])[-1]}

    benchmark.pedantic(train, rounds=1)
    fetched = [line for line in read_log(run) if "images_per_s" in line][FETCH::FETCH]
    if fetched and not row["failed"]:
        samples = [BATCH / line["images_per_s"] for line in fetched]
        row["providers"] = {
            "fastalex": {"says": "fastalex-train", "ours": True, "samples": samples}
        }
    benchmark.extra_info.update(row)
    session.write(row)
    session.say(f"gpus: {row['key']} {row['failed'] or 'done'}")
