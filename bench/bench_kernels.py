"""Every op of fastalex.kernels, a layer and a pass at a time, beside its peers on the same device.

    python -m bench ops
    pytest bench/bench_kernels.py -k "norm1"      # also "conv and paper", "1024 and not conv"

At the shapes of the paper's network and torchvision's (two networks, never mixed). A benchmark is
one pass of one op; its figure is fastalex's under `use("auto")`. `extra_info` has every provider's
seconds, round by round, taken in turns, and what the pass must move and compute. Before anything is
timed fastalex's results are held against plain float32.

    triton, auto      fastalex, under use("triton") and use("auto")
    torch             stock ops in channels_last; convolution by cuDNN on a GPU, ReLU in place
    torch-nchw        the same in torch's default layout, on a CPU
    torch-autocast    the same under autocast, which takes normalization to float32
    torch-compiled    the same under torch.compile
    aten-compiled     fastalex's own formula in ATen under torch.compile
    torch-split       each group a convolution of its own
    cudnn-fused       cuDNN's convolution + bias + ReLU, forward only
    torch-fused       torch.optim.SGD(fused=True), another formula of the same traffic

The limit of a row is the larger of its traffic at the speed of a large copy and its arithmetic at
the speed of a large matrix product, both measured here. The fully connected layers, for which
fastalex has no op, are there so that the rows make up a step.

What has not begun when the time is over is left out. On a GPU, in bfloat16, batches 128 and 1024;
on a CPU, in float32, batch 8, ATen beside stock torch, within a minute or so.
"""

import time
from dataclasses import asdict

import pytest
from _kernel_cases import CASES, Case, work_of
from _kernel_device import Clock, Limits
from _kernel_work import OURS, Prepared, Work
from _machine import DEVICE, GPU
from _session import Session
from _warm import warm

from fastalex import kernels

WARM_UP, ROUNDS = (3, 20) if GPU else (1, 7)
PRECISION = "bf16" if GPU else "fp32"
TOLERANCE = 0.01 if GPU else 1e-4
"""Root mean square error, relative; one wrong image in a thousand is three times bfloat16's."""

PASSES = [
    pytest.param(case, which, id=f"{case.name}-{which}") for case in CASES for which in case.passes
]


class Bench:
    """The clock, the limits, and the choices that have been told."""

    def __init__(self, session: Session) -> None:
        self.session, self.clock, self.told = session, Clock(DEVICE), 0
        measured = session.limits
        self.limits = Limits(measured["copy"], measured[PRECISION])

    def choices(self) -> list[dict]:
        """What `auto` chose since the last time."""
        new = kernels.report()[self.told :]
        self.told += len(new)
        return [asdict(choice) | {"winner": choice.winner} for choice in new]


@pytest.fixture(scope="session")
def bench(request, session: Session) -> Bench:
    cases = {item.callspec.params["case"].name for item in request.session.items}
    if GPU:
        began = time.monotonic()
        warm("ops", [case.name for case in CASES if case.name in cases], session.left / 2)
        session.say(f"ops: compiled in {time.monotonic() - began:.0f} s")
    return Bench(session)


def _prepared(work: Work, which: str) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Each provider, and those peers that cannot do this here, with their reasons."""
    ready, failed = {}, {}
    for name in work.names(which):
        try:
            setup, call = work.prepare(name, which)
            call(setup())
            ready[name] = setup, call
        except Exception as error:
            if name in OURS:
                raise
            failed[name] = f"{type(error).__name__}: {error}"[:300]
    return ready, failed


@pytest.mark.filterwarnings("default")  # the compilers' advice is no failure of a peer
@pytest.mark.parametrize(("case", "which"), PASSES)
def bench_kernel(case: Case, which: str, bench: Bench, benchmark) -> None:
    row = {"part": "ops", "key": f"{case.name}-{which}", "network": case.network}
    row |= {"layer": case.layer, "batch": case.batch, "which": which, "left_out": {}}
    row["precision"] = PRECISION
    if bench.session.left < 0:
        reason = "no time left"
        bench.session.write(row | {"providers": {}, "failed": {}, "left_out": {"all": reason}})
        pytest.skip(reason)
    work, clock = work_of(case), bench.clock
    errors = {name: work.error(name, which) for name in work.names(which) if name in OURS}
    assert all(error <= TOLERANCE for error in errors.values()), errors
    prepared, failed = _prepared(work, which)
    names, seconds = list(prepared), {name: [] for name in prepared}

    def one_of_each() -> None:
        """In an order that shifts by one each round; only `auto` is seen by pytest-benchmark."""
        shift = len(seconds["auto"]) % len(names)
        for name in names[shift:] + names[:shift]:
            setup, call = prepared[name]
            spent = clock.seconds(call, setup())
            seconds[name].append(spent)
            clock.now += spent if name == "auto" else 0.0

    for _ in range(WARM_UP):
        one_of_each()
    benchmark._timer = clock
    benchmark.pedantic(one_of_each, rounds=ROUNDS)
    cost = work.passes[which]
    row |= {
        "floor_s": bench.limits.seconds(cost.moved, cost.flops),
        "moved_bytes": cost.moved,
        "flops": cost.flops,
        "providers": {
            name: {"ours": name in OURS, "error": errors.get(name), "samples": each[WARM_UP:]}
            for name, each in seconds.items()
        },
        "failed": failed,
        "choices": bench.choices(),
    }
    benchmark.extra_info.update(row)
    bench.session.write(row)
    bench.session.say(f"{row['key']}: {1e3 * min(seconds['auto']):.3g} ms")
