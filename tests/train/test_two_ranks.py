"""Two ranks, as two processes over gloo, against one process: the same losses, gradients, weights.

The ranks run two_ranks.py, all jobs in one pair of processes. Every job has dropout in it, and a
different share of fc8 on each rank.
"""

from pathlib import Path
from typing import get_args

import pytest
import torch

from fastalex.commands import ranks
from fastalex.train.config import Precision
from fastalex.train.distributed import ALONE

from .two_ranks import steps_of

WAYS = [
    *(f"{variant}:{mode}:{parts}" for variant in ("paper", "original")
      for mode in ("towers", "hybrid") for parts in (1, 2, 4)),
    *(f"torchvision:hybrid:{parts}" for parts in (1, 2, 4)),
    *(f"{variant}:data:1" for variant in ("paper", "original", "torchvision", "batchnorm")),
    *(f"batchnorm:{mode}:1" for mode in ("towers", "hybrid")),
]  # fmt: skip
EXACT, LONG = "float64:1", "float32:20"
LONG_WAYS = [
    "paper:towers:1", "paper:towers:2", "paper:towers:4", "paper:hybrid:2", "paper:data:1",
    "original:towers:2", "torchvision:hybrid:4",
]  # fmt: skip
"""Not batch norm's, which magnifies rounding past 1e-5, in one process with other threads too."""
TRACED = ["paper:towers:2:float64:2:traced"]
COMPILED = [f"paper:{way}:float64:2:compiled" for way in ("towers:2", "hybrid:2", "data:1")]
HALF = [f"paper:{way}:float32:5:{how}" for way in ("towers:2", "hybrid:1", "data:1")
        for how in ("bf16", "fp16")]  # fmt: skip
JOBS = [
    *TRACED, *HALF, *(f"{way}:{EXACT}" for way in WAYS), *(f"{way}:{LONG}" for way in LONG_WAYS)
]  # fmt: skip
ROUNDING = 1e-12
"""Of float64, over one step: some thousands of additions in another order."""


def run_ranks(out: Path, jobs: list[str], device: str = "cpu") -> dict:
    """What two ranks give, by job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        script = Path(__file__).with_name("two_ranks.py")
        ranks.run([str(script), str(out), device, *jobs], 2)
    return torch.load(out, map_location="cpu")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> dict:
    return run_ranks(tmp_path_factory.mktemp("ranks") / "results.pt", JOBS)


@pytest.fixture(scope="module")
def by_one() -> dict:
    """What one process gives, by job without its mode."""
    known = {}
    threads = torch.get_num_threads()

    def result(job: str) -> dict:
        variant, _, _, kind, count, *how = job.split(":")
        precision = [word for word in how if word in get_args(Precision)]
        key = ":".join([variant, "one", "1", kind, count, *precision])
        if key not in known:
            torch.set_num_threads(1)
            known[key] = steps_of(ALONE, key)
            torch.set_num_threads(threads)
        return known[key]

    return result


def assert_close(ours: dict, theirs: dict, tolerance: float) -> None:
    """Each tensor, relative to its own largest number."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = (ours[name] - expected).abs().max() / expected.abs().max().clamp_min(1e-300)
        assert ours[name].shape == expected.shape, name
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("way", WAYS)
def test_one_step_is_the_same_to_rounding(way, by_two, by_one):
    ours, theirs = by_two[f"{way}:{EXACT}"], by_one(f"{way}:{EXACT}")
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=ROUNDING, atol=0)
    assert all(value.any() for value in theirs["gradients"].values())
    assert_close(ours["gradients"], theirs["gradients"], ROUNDING)
    assert_close(ours["state"]["model"], theirs["state"]["model"], ROUNDING)


@pytest.mark.parametrize("way", LONG_WAYS)
def test_twenty_steps_in_float32(way, by_two, by_one):
    ours, theirs = by_two[f"{way}:{LONG}"], by_one(f"{way}:{LONG}")
    assert len(ours["losses"]) == 20
    assert ours["losses"].std() > 0.01  # there is something to get wrong
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("job", TRACED)
def test_traced_it_is_the_same(job, by_two, by_one):
    """Two steps, in one graph each way."""
    ours, theirs = by_two[job], by_one(job)
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=ROUNDING, atol=0)
    assert_close(ours["gradients"], theirs["gradients"], ROUNDING)


@pytest.mark.parametrize("job", HALF)
def test_half_precision(job, by_two, by_one):
    """Within some of its roundings; fp16's scale falls on all where one's gradients overflow."""
    ours, theirs = by_two[job], by_one(job)
    rounding = torch.finfo({"bf16": torch.bfloat16, "fp16": torch.float16}[job[-4:]]).eps
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=5 * rounding, atol=0)
    ours_, theirs_ = (
        {k: v for k, v in x["state"]["model"].items() if v.ndim > 1} for x in (ours, theirs)
    )
    assert_close(ours_, theirs_, 5 * rounding)
    assert ours["scale"] == theirs["scale"] * 2
    assert theirs["scale"] == [2.0**14 if job.endswith("fp16") else 1.0]  # two overflows


@pytest.mark.slow
@pytest.mark.parametrize("job", COMPILED)
def test_compiled_it_is_the_same(job, tmp_path, by_one):
    ours, theirs = run_ranks(tmp_path / "results.pt", [job])[job], by_one(job)
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=ROUNDING, atol=0)
    assert_close(ours["gradients"], theirs["gradients"], ROUNDING)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("job", [f"{way}:{EXACT}" for way in WAYS[:6]] + COMPILED)
def test_two_ranks_on_one_gpu(job, tmp_path, by_one):
    """By gloo, which takes GPU tensors too: the code that runs on two GPUs, without NCCL."""
    ours = run_ranks(tmp_path / "results.pt", [job], "cuda:0")[job]
    torch.testing.assert_close(ours["losses"], by_one(job)["losses"], rtol=1e-11, atol=0)
    assert_close(ours["gradients"], by_one(job)["gradients"], 1e-11)


@pytest.mark.parametrize("way", ["paper:towers:2", "paper:hybrid:2", "paper:data:1"])
def test_the_state_is_that_of_one_process(way, by_two, by_one):
    """Weights, and the velocity under the same numbers, in the same memory layout."""
    ours, theirs = by_two[f"{way}:{EXACT}"]["state"], by_one(f"{way}:{EXACT}")["state"]
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    ours, theirs = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert ours.keys() == theirs.keys()
    for number, expected in theirs.items():
        assert_close(ours[number], expected, ROUNDING)
        assert ours[number]["velocity"].stride() == expected["velocity"].stride()


def test_a_tower_holds_half(by_two, by_one):
    """Of everything, but for fc8's odd class."""
    whole = by_one(f"paper:one:1:{EXACT}")["parameters"]
    assert by_two[f"paper:data:1:{EXACT}"]["parameters"] == whole
    units = by_two[f"paper:towers:1:{EXACT}"]["state"]["model"]["classifier.6.weight"].shape[1]
    assert by_two[f"paper:towers:1:{EXACT}"]["parameters"] == (whole + units + 1) / 2
    assert whole / 2 < by_two[f"paper:hybrid:1:{EXACT}"]["parameters"] < whole
