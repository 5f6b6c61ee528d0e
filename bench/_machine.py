"""What the benchmarks run on: the device, its name in a file's name, and the versions in force.

For every file of bench/. The GPU where there is one, else the CPU.
"""

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from fastalex.version import __version__

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = DEVICE.type == "cuda"
ROOT = Path(__file__).parents[1]


def device_name() -> str:
    if GPU:
        return torch.cuda.get_device_name()
    return f"CPU {_processor()}, {_cores()} cores"


def slug() -> str:
    """The device's name in a file's name: nvidia-h200, cpu-amd-epyc-2-cores."""
    return re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")


def device() -> dict:
    """What the JSON keeps of the device."""
    known: dict[str, object] = {"slug": slug(), "name": device_name(), "kind": DEVICE.type}
    if GPU:
        found = torch.cuda.get_device_properties(DEVICE)
        known["memory_bytes"] = found.total_memory
        known["count"] = torch.cuda.device_count()
    else:
        known["threads"] = torch.get_num_threads()
    return known


def versions() -> dict[str, str]:
    found = {
        "fastalex": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "triton": _triton(),
        "python": platform.python_version(),
    }
    if GPU:
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def _commit() -> str:
    """Of the working tree; with a + where it has been changed since; "unknown" outside git."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", "fastalex", "bench/*.py"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.M)
    name = found[1] if found else platform.processor() or platform.machine()
    return re.sub(r"\s+(\d+-Core Processor|CPU @.*)$", "", name)
