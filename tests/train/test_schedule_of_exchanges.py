"""What two ranks exchange, and when: the step beside the formulas of docs/two-gpus.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import _two_gpus_model as model
import _two_gpus_network as network
import _two_gpus_record as record
import _two_gpus_tables as tables
import _two_gpus_trace as trace
import pytest
import torch
from _two_gpus_record import Compute, Launch, Wait

from fastalex import AlexNet

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "two-gpus.md").read_text()


def sent(events):
    return sum(event.sent for event in events if isinstance(event, Launch))


def in_stretches(events):
    """The FLOPs between one launch or wait and the next, added up."""
    merged = []
    for event in events:
        if isinstance(event, Compute) and merged and isinstance(merged[-1], Compute):
            event = Compute(merged.pop().flops + event.flops)
        merged.append(event)
    return merged


@pytest.mark.parametrize(
    ("mode", "parts"), [("towers", 1), ("towers", 2), ("towers", 4), ("hybrid", 1), ("hybrid", 2)]
)
def test_the_simulated_program_is_the_steps_own(mode, parts):
    """Every launch, wait and product, with its bytes and FLOPs, at full width."""
    step = record.eager(tables.settings(mode, 64, parts))
    assert in_stretches(step) == in_stretches(model.events(model.program(mode, 64, parts)))
    assert sent(step) == network.bytes_sent(mode, 64, half=True)


@pytest.mark.parametrize("mode", ["towers", "hybrid"])
def test_the_bytes_of_float32_are_the_formulas(mode):
    step = record.eager(tables.settings(mode, 32, 1, precision="fp32"))
    assert sent(step) == network.bytes_sent(mode, 32, half=False)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_data_sends_every_gradient_once_whatever_the_batch(precision, size):
    parameters = sum(p.numel() for p in AlexNet(1000, width=0.05).parameters())
    for batch in (4, 8):
        step = record.data(tables.settings("data", batch, precision=precision, width=0.05))
        assert sent(step) == size * parameters
    with torch.device("meta"):
        whole = sum(p.numel() for p in AlexNet(1000).parameters())
    assert network.bytes_sent("data", 8, half=precision == "bf16") == size * whole


def test_the_ring_of_more_ranks():
    """Each of k ranks sends (k - 1) / k of the whole, twice for a sum."""
    two, four = (network.bytes_sent("data", 8, half=False, ranks=k) for k in (2, 4))
    assert four == two * 3 // 2
    features = 2 * 3 * (9216 + 4096 + 4096) * 2 * 64 // 4
    rest = 3 * 250 * 2 * 64 + 3 * 8 * 64 // 4 + 2 * 3 * 4 * 2_334_080 // 4
    assert network.bytes_sent("hybrid", 64, half=True, ranks=4) == features + rest


def test_the_simulator_hides_what_runs_behind_an_exchange():
    gpu = model.Gpu("slow", flops=1.0, memory=1e30, link=1.0)
    second = model.Work(flops=model.EFFICIENCY["matrix products"])
    at_once = [Launch(2), Wait(0), second]
    behind = [Launch(2), second, Wait(0)]
    in_line = [Launch(2), Launch(2), second, Wait(1)]
    expected = [(3.0, 2.0), (2.0, 1.0), (4.0, 3.0)]
    for steps, (step, exposed) in zip([at_once, behind, in_line], expected, strict=True):
        assert model.simulate(steps, gpu) == pytest.approx((step, exposed), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "make"), [("bytes", tables.bytes_by_formula), ("times", tables.predicted_times)]
)
def test_the_pages_tables_are_the_tools(name, make):
    assert tables.section(name, PAGE) == make()


COMPILE = """
import json, _two_gpus_record, _two_gpus_tables as tables
config = tables.settings("towers", tables.SCHEDULE_BATCH, 2, compile=True)
print(json.dumps(tables.exchanges(_two_gpus_record.compiled(config), 2)))
"""


@pytest.mark.slow
def test_compiled_every_exchange_has_products_to_hide_behind():
    """With two micro-batches, but for the last logits, which nothing is left to follow."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench")])}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    exchanges = [tables.Exchange(*each) for each in json.loads(ran.stdout)]
    assert len(exchanges) == 18
    bare = [(e.name, e.micro_batch) for e in exchanges if not e.flops]
    assert bare == [("the logits", 1)]
    assert sum(e.sent for e in exchanges) == network.bytes_sent("towers", 256, half=True)
    if f"torch {torch.__version__.split('+')[0]}," in tables.section("schedule", PAGE):
        assert tables.schedule(exchanges) in PAGE


def test_the_picture_has_every_stretch_of_computing_and_every_wait():
    clock, events = iter(range(10_000)), []

    def add(name):
        events.append({"name": name, "ts": 10 * next(clock), "dur": 4})

    for event in model.events(model.program("towers", trace.BATCH, 2)):
        if isinstance(event, Launch):
            add("_c10d_functional::all_gather_into_tensor")
            add("gloo:all_gather")
        elif isinstance(event, Wait):
            add("_c10d_functional::wait_tensor")
    step = {"name": "step", "ts": -10, "dur": 10 * next(clock) + 20}
    bars = trace._bars([*events, step], 2)
    computed = [f"{b.label}{b.micro_batch}" for b in bars if b.kind == "compute"]
    forward = [f"{name}{m}" for name in "ABCDE" for m in (0, 1)]
    assert computed == forward + forward[::-1]
    assert {kind: sum(b.kind == kind for b in bars) for kind in ("flight", "travel")} == {
        "flight": 18,
        "travel": 18,
    }
    assert all(b.end > b.begin for b in bars)
