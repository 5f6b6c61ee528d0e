"""What a process has to know and to do as one rank of several.

For `launch`, and for the commands that run as ranks. The environment tells a rank who it is: RANK,
WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, torch's names for it, set by
torchrun or by `ranks`, or derived here from what Slurm's srun sets. Needs no torch.
"""

import ctypes
import faulthandler
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Mapping

LAUNCHER = "FASTALEX_LAUNCHER"
"""In the environment of ranks that `ranks` started: its process id."""
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def is_rank() -> bool:
    """Whether this process is one rank of several, as the environment has it."""
    os.environ.update(from_slurm(os.environ))
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def has_launcher() -> bool:
    """Whether `ranks` started this rank, and will say what became of it."""
    return LAUNCHER in os.environ


def enter() -> None:
    """Before all else in a process that may be a rank: one that `ranks` started dies with it."""
    if is_rank():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what fails is said in one line
    if not has_launcher():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHER]):  # it died before that
        os._exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `ranks` has it off for the imports
    if "--debug" in sys.argv:
        faulthandler.enable()


def leave_word(error: BaseException, code: int, text: str, *, consequence: bool) -> None:
    """Tell the launcher, `ranks` or torchrun, why this rank ends; in torch's form of such a file.

    Args:
        code: what this process will exit with.
        text: the line for a person.
        consequence: it ends only because another rank has.
    """
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return
    now = time.time()
    extra = {
        "py_callstack": "".join(traceback.format_exception(error)),
        "timestamp": str(int(now)),
        "time": now,
        "consequence": consequence,
    }
    word = {"message": {"message": text, "extraInfo": extra, "errorCode": code}}
    with open(f"{path}.part", "w") as file:
        json.dump(word, file)
    os.replace(f"{path}.part", path)  # torch's launcher fails at half a file


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch wants in the environment, from what srun has set there (man srun).

    Empty outside of a step of several tasks: an `salloc` shell and an `sbatch` script have the
    job's variables, the latter even SLURM_PROCID, but are one process. Empty where RANK is set.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or "SLURM_PROCID" not in environment or int(tasks) < 2:
        return {}
    node = int(environment.get("SLURM_NODEID", "0"))
    # The first node of the step is where rank 0 runs; srun itself may run on a login node.
    address = _first_host(environment.get("SLURM_STEP_NODELIST", ""))
    job = int(environment.get("SLURM_JOB_ID", "0"))
    step = int(environment.get("SLURM_STEP_ID", "0"))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": _tasks_on(node, environment.get("SLURM_STEP_TASKS_PER_NODE", tasks)),
        "MASTER_ADDR": address or environment.get("SLURM_LAUNCH_NODE_IPADDR", "localhost"),
        # The same for all ranks, another one for other jobs on the node; below the ports that
        # systems hand out by themselves.
        "MASTER_PORT": str(15000 + (7 * job + step) % 10000),
    }
    return {name: value for name, value in found.items() if name not in environment}


def _first_host(nodes: str) -> str:
    """`gpu[003-008,011],login1` -> `gpu003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else "")


def _tasks_on(node: int, tasks_per_node: str) -> str:
    """`2(x3),1`: nodes 0 to 2 have two tasks, node 3 has one."""
    counts: list[str] = []
    for item in tasks_per_node.split(","):
        count, _, times = item.partition("(x")
        counts += [count] * int(times.rstrip(")") or 1)
    return counts[min(node, len(counts) - 1)]
