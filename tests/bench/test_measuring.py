"""The gate, the turns, the budget: what is measured, and what is refused or said to be missing."""

import functools
import math
from unittest import mock

import _floor
import _gate
import _measure
import _step
import _warm
import pytest
import torch
from _captured import CapturedPeer
from _group import Group, Kind
from _measure import Turns, order, percentile
from _peers import TunedTowerNorm
from _session import Session, read_rows
from _settings import GATE, TIMED, Setting
from _step import Ours, Peer, Provider
from _tables import missing

KIND = Kind(
    part="step",
    plain="",
    reference=_step.reference,
    outcome=_gate.outcome,
    gate=lambda provider, setting: provider.build(setting, GATE),
    timed=lambda provider, setting: provider.build(setting, TIMED),
    training=True,
)
OURS = Provider("ours", Ours, ours=True)
PLAIN = Provider("plain", functools.partial(Peer, precision="fp32"))


class WithoutConvGradients(Peer):
    """What torch 2.13's compiler makes of plain convolutions in the default layout on a CPU."""

    def step(self):
        hooks = [p.register_hook(torch.zeros_like) for p in self.model.parameters() if p.dim() == 4]
        loss = super().step()
        for hook in hooks:
            hook.remove()
        return loss


class OfAnotherLoss(Ours):
    def step(self):
        return super().step() + 1


WRONG = Provider("wrong", functools.partial(WithoutConvGradients, precision="fp32"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_measure, "ROUNDS", (2, 2))
    monkeypatch.setattr(_measure, "GROUP_SECONDS", 1e-3)
    monkeypatch.setattr(_measure, "WARM_UP_CALLS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_wrong_peer_is_refused_and_never_timed(tiny, session, benchmark_stub, tmp_path):
    providers = {"fastalex": OURS, "plain": PLAIN, "wrong": WRONG}
    Group(KIND, tiny, providers, session).run(benchmark_stub)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert set(row["providers"]) == {"fastalex", "plain"}
    assert "gradient is 100.0% off plain float32" in row["failed"]["wrong"]
    assert len(row["providers"]["plain"]["samples"]) == 2
    assert row["providers"]["fastalex"]["error"] < 1e-3


def test_ours_wrong_is_an_error_and_the_row_is_kept(tiny, session, benchmark_stub, tmp_path):
    providers = {"fastalex": Provider("", OfAnotherLoss, ours=True), "plain": PLAIN}
    with pytest.raises(AssertionError, match="loss is"):
        Group(KIND, tiny, providers, session).run(benchmark_stub)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert set(row["providers"]) == {"plain"}


def test_what_a_step_takes_off_a_weight_is_its_gradient(tiny):
    """Ours and stock PyTorch, with rates inside and outside the velocity."""
    right = _step.reference(tiny)
    for running in (Ours(tiny, GATE), Peer(tiny, GATE, precision="fp32")):
        assert max(_gate.errors(_gate.outcome(running), right).values()) < 1e-3
    model = Peer(tiny, GATE, precision="fp32")
    model._forward(model.images, model.labels).backward()
    gradient = next(model.model.parameters()).grad
    assert _gate.relative_error(right["conv1's weight gradient"], GATE.lr * gradient) < 1e-3


def test_half_precision_is_judged_by_plain_half_precision():
    of_plain = {"loss": 0.001, "conv1": 0.3}
    assert _gate.check({"loss": 0.01, "conv1": 0.55}, True, of_plain) == 0.55
    with pytest.raises(_gate.GateError, match="loss is"):
        _gate.check({"loss": 0.03, "conv1": 0.3}, True, of_plain)
    with pytest.raises(_gate.GateError, match="conv1 is 100"):
        _gate.check({"loss": 0.0, "conv1": 1.0}, True, {"conv1": 0.9, "loss": 0.9})
    with pytest.raises(_gate.GateError):
        _gate.check({"loss": 0.03, "conv1": 0.03}, False, of_plain)
    assert math.isinf(_gate.relative_error(torch.tensor([math.nan]), torch.ones(1)))
    assert math.isinf(_gate.relative_error(torch.ones(2), torch.ones(1)))


def test_everybody_has_a_turn_each_round_and_the_first_shifts():
    log = []
    calls = {name: (functools.partial(log.append, name), 1.0) for name in "abc"}
    turns = Turns(calls, "b", latency=False)
    for _ in range(4):
        turns.one_round()
    assert "".join(log) == "abcbcacababc"
    assert {name: len(samples) for name, samples in turns.samples.items()} == dict.fromkeys(
        "abc", 4
    )
    assert turns.now == sum(turns.samples["b"])
    assert order(["a", "b"], 3) == ["b", "a"]


def test_rounds_follow_the_time_there_is(monkeypatch):
    monkeypatch.setattr(_measure, "ROUNDS", (5, 30))
    turns = Turns({"a": (lambda: None, 1.0), "b": (lambda: None, 1.0)}, "a", latency=False)
    assert [turns.rounds_in(seconds) for seconds in (0, 20, 1000)] == [5, 10, 30]


def test_percentiles_lie_between_neighbours():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentile(list(map(float, range(11))), 0.9) == 9.0
    assert percentile([7.0], 0.1) == 7.0


def test_what_has_no_time_left_is_said(tiny, session, benchmark_stub, tmp_path):
    slow = Provider("slow", functools.partial(Peer, precision="fp32"), compiled=True, slow=True)
    Group(KIND, tiny, {"plain": PLAIN, "slow": slow}, session, seconds=20).run(benchmark_stub)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert set(row["providers"]) == {"plain"}
    assert row["left_out"]["slow"].endswith("it would take about 90 s")
    part = {"left_out": ["process 3 of 3: no time left"], "rows": [row]}
    assert missing(part)[0] == "process 3 of 3: no time left"
    assert missing(part)[1].startswith("demo-2 slow: no time left: ")


def test_later_processes_take_the_firsts_verdict(tiny, session, benchmark_stub, tmp_path):
    Group(KIND, tiny, {"plain": PLAIN, "wrong": WRONG}, session).run(benchmark_stub)
    later = Session(tmp_path / "later.jsonl", None, tmp_path / "rows.jsonl")
    later.__dict__["limits"] = session.limits
    Group(KIND, tiny, {"plain": PLAIN, "wrong": WRONG}, later).run(benchmark_stub)
    (first,), (row,) = read_rows(tmp_path / "rows.jsonl"), read_rows(tmp_path / "later.jsonl")
    assert row["left_out"] == {"wrong": "as in the first process"}
    assert row["providers"]["plain"]["error"] == first["providers"]["plain"]["error"]


@pytest.mark.parametrize(("batch", "images_per_s"), [(128, 117e3), (1024, 156e3), (2048, 160e3)])
def test_the_limit_of_the_papers_step(batch, images_per_s):
    """Worked out by hand for an H200: 790 TFLOP/s of products, 4.3 TB/s of copy."""
    found = _floor.costs("paper", 1.0, 1000, batch, 2, training=True)
    assert batch / _floor.seconds(found, 4.3e12, 790e12) == pytest.approx(images_per_s, rel=0.01)


def test_the_costs_of_a_layer():
    found = {(c.layer, c.which): c for c in _floor.costs("paper", 1.0, 1000, 2, 2, training=True)}
    conv1 = found["conv1", "forward"]
    assert conv1.flops == 2 * 2 * 55 * 55 * 96 * 11 * 11 * 3
    assert conv1.moved == 2 * (2 * 227 * 227 * 3 + 2 * 55 * 55 * 96 + 96 * 363)
    assert ("conv1", "input gradient") not in found
    assert found["conv2", "input gradient"].flops == 2 * 2 * 27 * 27 * 256 * 25 * 48
    maps, pooled = 2 * 96 * 55 * 55, 2 * 96 * 27 * 27
    assert found["norm1+pool1", "backward"].moved == 2 * (2 * maps + pooled) + pooled
    assert found["optimizer", "update"].moved == 20 * 60_965_224
    answers = _floor.costs("paper", 1.0, 1000, 2, 2, training=False)
    assert {cost.which for cost in answers} == {"forward"}


def test_compiling_ahead_names_what_the_first_process_builds(tiny, session, benchmark_stub):
    """The seconds that it took there are the first call's, and no long wait is expected."""
    assert _warm._named("paper-128 graph") == (Setting("paper", 128), "graph")
    session.first_calls = {"demo-2 compiled": 12.5}
    compiled = Provider("", functools.partial(Peer, precision="fp32"), compiled=True)
    group = Group(KIND, tiny, {"compiled": compiled}, session, seconds=20)
    row = group.run(benchmark_stub)
    assert row["providers"]["compiled"]["first_call_s"] == 12.5
    assert session.expects("demo-4", "compiled", compiled=True, slow=False) > 0
    assert _warm._run_inference("demo-1 eager") > 0


def test_warming_up_a_graph_leaves_weights_and_momentum_as_they_began(tiny, monkeypatch):
    """What is captured next is then a first step, at the rate it was built for."""
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    captured = object.__new__(CapturedPeer)
    captured._peer = Peer(tiny, TIMED, precision="fp32", norm=TunedTowerNorm)
    before = captured.weights()
    captured._warm_up(TIMED.lr)
    assert all(map(torch.equal, before, captured.weights()))
    optimizer = captured._peer.optimizer
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
    assert optimizer.param_groups[0]["lr"] == TIMED.lr
    assert all(p.grad is None for p in captured._peer.model.parameters())


@pytest.mark.parametrize("name", ["eager", "eager-lrn"])
def test_the_peers_of_a_gpu_pass_the_gate(name, tiny):
    """As far as they run on a CPU: in bfloat16, no farther off than twice plain autocast."""
    right, peers = _step.reference(tiny), _step._on_a_gpu(tiny)
    plain = _gate.errors(_gate.outcome(peers["eager"].build(tiny, GATE)), right)
    found = _gate.errors(_gate.outcome(peers[name].build(tiny, GATE)), right)
    assert _gate.check(found, peers[name].half, plain) < 0.7
