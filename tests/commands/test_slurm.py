"""What srun sets in the environment, as torch's names."""

import pytest

from fastalex.commands.rank import from_slurm

SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[003-005,011],fat1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip


def test_slurms_names_become_torchs():
    assert from_slurm(SLURM) == {
        "RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu003", "MASTER_PORT": str(15000 + 7 * 123456 % 10000),
    }  # fmt: skip
    last = from_slurm({**SLURM, "SLURM_PROCID": "6", "SLURM_NODEID": "3"})
    assert last["LOCAL_WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a,b", "a"), ("n7", "n7"), ("r[1-2]n[03,05]", "r1n03"), ("n[9],m", "n9"), ("", "10.0.0.1")],
)
def test_rank_0_is_on_the_first_node(nodes, first):
    assert from_slurm({**SLURM, "SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


def test_what_is_set_by_hand_stays():
    found = from_slurm({**SLURM, "MASTER_ADDR": "here", "MASTER_PORT": "1"})
    assert not {"MASTER_ADDR", "MASTER_PORT"} & set(found)
    assert from_slurm({**SLURM, "RANK": "0"}) == {}


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"])
def test_one_process_of_a_slurm_job_is_no_rank(missing):
    """An salloc shell has not the one, an sbatch script not the other."""
    assert from_slurm({k: v for k, v in SLURM.items() if k != missing}) == {}


def test_a_step_of_one_task_is_no_rank():
    assert from_slurm({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) == {}
