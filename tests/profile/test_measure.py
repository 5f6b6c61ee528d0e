"""What is timed, on which clock, and how the table shows it."""

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastalex import kernels
from fastalex.kernels._choice import Choice
from fastalex.profile import Pass, Profile, Row, clock, measure, profile, table
from fastalex.profile.clock import Clock, Limits, limits
from fastalex.profile.units import Cost, Unit
from fastalex.train import TrainConfig
from fastalex.train.build import build_model
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

CPU = torch.device("cpu")
SMALL = TrainConfig(width=0.05, batch_size=2, precision="fp32", compile=False, dropout=0.25)


class Recorder(Clock):
    """Says that each call took a millisecond; keeps what it returned."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.results = []

    def once(self, call):
        self.results.append(call())
        return 1.0, self.results[-1]

    def rounds(self, first):
        return 1


@pytest.fixture
def quick(monkeypatch):
    """No large product and copy; one round."""
    monkeypatch.setattr(measure, "limits", lambda *_: Limits(flops_per_s=1e9, bytes_per_s=1e8))
    monkeypatch.setattr(Clock, "rounds", lambda self, first: 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_profiled_and_leaves_the_weights(quick, precision):
    config = replace(SMALL, precision=precision)
    model = build_model(config, 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = profile(config, model, CPU)
    assert [row.name for row in found.rows][::12] == ["conv1+relu", "loss"]
    assert [row.name for row in found.rows][-1] == "optimizer"
    assert all(each.ms > 0 for row in found.rows for each in row.passes.values())
    assert [set(row.passes) for row in found.rows[:-1]] == [{"forward", "backward"}] * 13
    assert found.step_ms > 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key].to(value.dtype)), key  # in bf16 they are rounded
    size = {"fp32": 4, "bf16": 2}[precision]
    assert found.rows[-2].moved == 3 * size * 2 * 10
    assert found.rows[-1].moved == 20 * sum(value.numel() for value in before.values())
    assert json.loads(json.dumps(found.to_json()))["rows"][0]["name"] == "conv1+relu"
    assert "conv5+relu" in table(found)


def test_backward_is_timed_with_all_gradients():
    x, weight = torch.ones(2, 3, requires_grad=True), torch.nn.Parameter(torch.ones(3))
    unit = Unit("row", lambda x: x * weight, x, (weight,), {})
    seen = Recorder()
    assert measure._unit_ms(unit, seen, contextlib.nullcontext) == {
        "forward": 1.0,
        "backward": 1.0,
    }
    outputs, gradients = seen.results[::2], seen.results[1::2]
    assert all(torch.equal(y, x * weight) for y in outputs)
    assert all([g.shape for g in each] == [(2, 3), (3,)] for each in gradients)
    assert len(gradients) == 2


def test_whole_steps_are_warmed_up_and_numbered():
    seen, calls = Recorder(), []

    class Step:
        """Notes the order: the inputs' stream, what is put within it, the step."""

        def __init__(self):
            self.inputs = self

        @contextlib.contextmanager
        def stream(self):
            calls.append("in")
            yield
            calls.append("out")

        def put(self, *batch):
            calls.append(batch)

        def run(self, rates, number):
            calls.append((rates, number))

    ms = measure._step_ms(Step(), 1, 2, 3, seen)
    assert (ms, len(seen.results)) == (1.0, 1 + 1)
    still = Rates(0.0, 0.0, 0.0, 0.0)
    assert calls == [x for n in range(1 + 1) for x in ("in", (1, 2, 3), "out", (still, n))]


def test_a_step_that_wants_pixels_is_given_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    step = TrainStep(build_model(SMALL, 10), SMALL, CPU)
    images, labels = torch.zeros(3, 3, 40, 40), torch.arange(3)
    assert measure._staged(step, images, labels) == (images, labels, None)
    step.inputs.wants_pixels = True
    pixels, same, changes = measure._staged(step, images, labels)
    assert same is labels
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 40, 40, 3))
    assert changes.of(pixels).shape == images.shape


def test_a_busy_machine_is_named(quick):
    found = profile(SMALL, build_model(SMALL, 10), CPU)
    rows = sum(row.ms for row in found.rows)
    assert "do not trust the shares" in " ".join(table(replace(found, step_ms=rows / 3)).split())
    assert "do not trust the shares" not in " ".join(table(replace(found, step_ms=rows)).split())


def test_the_limit_is_the_larger_of_arithmetic_and_traffic():
    bounds = Limits(flops_per_s=1e12, bytes_per_s=1e11)
    assert bounds.milliseconds(10**9, 10**9) == pytest.approx(10.0)
    assert bounds.milliseconds(10**11, 10**9) == pytest.approx(100.0)
    costs = {"forward": Cost(10**9, 10**9), "backward": Cost(10**11, 10**9)}
    row = measure._row("row", costs, {"forward": 20.0, "backward": 200.0}, bounds)
    assert (row.limit_ms, row.ms) == (pytest.approx(110.0), 220.0)
    assert (row.flops, row.moved) == (101 * 10**9, 2 * 10**9)


def test_limits_are_those_of_the_product_and_the_copy():
    seen = Recorder()
    got = limits(CPU, torch.bfloat16, seen)
    assert got == Limits(flops_per_s=2 * 2048**3 / 1e-3, bytes_per_s=2 * 2**28 / 1e-3)
    product, copy = seen.results[0], seen.results[-1]
    assert (product.dtype, product.shape) == (torch.bfloat16, (2048, 2048))
    assert copy.numel() * copy.element_size() == 2**28


def test_on_a_gpu_the_launch_is_hidden_behind_other_work(monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, end):
            return 30.0

    cuda = SimpleNamespace(
        Event=Event,
        _sleep=lambda cycles: done.append("busy"),
        synchronize=lambda: done.append("wait"),
    )
    other = SimpleNamespace(sum=lambda: done.append("flush"))
    monkeypatch.setattr(clock, "torch", SimpleNamespace(cuda=cuda, zeros=lambda *_, **__: other))
    gpu = Clock(torch.device("cuda"))
    assert gpu.once(lambda: done.append("call")) == (30.0, None)
    assert done == ["flush", "busy", "event", "call", "event", "wait"]
    done.clear()
    assert gpu.in_a_row(lambda: done.append("call")) == 3.0
    assert done == ["wait", "event", *["call"] * 10, "event", "wait"]
    assert gpu.rounds(1.0) == gpu.rounds(1e6) == 20


@pytest.fixture
def known() -> Profile:
    """Two rows of 4 and 1 ms; a step of 6."""
    rows = (
        Row(
            "conv1+relu",
            {"forward": Pass(1.0, 10**9, 10**6, 0.5), "backward": Pass(3.0, 0, 0, 0.5)},
        ),
        Row("optimizer", {"update": Pass(1.0, 0, 5 * 10**6, 1.0)}),
    )
    return Profile(SMALL, "a device", Limits(1e12, 2e11), rows, 6.0, kernels.Report())


def test_the_table(known):
    about, rows, why = (part.splitlines() for part in table(known).split("\n\n"))
    (head, limits_, ops), (_, *lines) = about, rows
    assert head == "variant paper at 0.05 of its width, fp32, batch 2, on a device"
    assert limits_.endswith("fp32: matrix product 1,000 GFLOP/s, copy 200.0 GB/s")
    assert ops == "ops: ATen"
    assert [" ".join(line.split()) for line in lines] == [
        "conv1+relu 1.000 3.000 4.000 80.0 % 1.0 1.0 1.000 25.0 %",
        "optimizer 1.000 20.0 % 5.0 1.000 100.0 %",
        "sum of rows 1.000 3.000 5.000 100.0 % 1.0 6.0 2.000 40.0 %",
        "whole step 6.000 1.0 6.0 2.000 33.3 %",
    ]
    assert len({len(line) for line in rows}) == 1
    assert "333 images/s; it takes 1.0 ms (20.0 % of the rows' sum) more" in " ".join(why)
    assert "launches" in " ".join(why)
    assert "launches" not in table(replace(known, device="the CPU (2 threads)"))


def test_the_table_of_a_step_quicker_than_its_rows(known):
    words = " ".join(table(replace(known, step_ms=4.5)).split())
    assert "0.5 ms (10.0 % of the rows' sum) less than its rows" in words
    compiled = replace(known, step_ms=4.5, config=replace(SMALL, compile=True))
    assert "torch.compile" in table(compiled)


def test_the_table_says_what_the_ops_ran_as(known):
    def choice(op, case, aten, triton):
        return Choice("a device", op, "forward", case, {"aten": aten, "triton": triton})

    choices = [choice("pool", "a", 2.0, 1.0), choice("pool", "b", 1.0, 2.0)]
    choices += [choice("pool", "c", 2.0, 1.0), choice("norm", "a", 2.0, 1.0)]
    shown = table(replace(known, choices=kernels.Report(choices))).splitlines()[2]
    assert shown == "ops: pool (2 triton, 1 aten), norm (1 triton)"
