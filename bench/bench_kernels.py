"""Every op of fastalex.kernels, a layer and a pass at a time, beside its peers on the same device.

    pytest bench/bench_kernels.py --benchmark-json=bench/results/kernels-h200.json

At the shapes of the paper's network and torchvision's (two networks, never mixed). A benchmark is
one pass of one op; its figure is fastalex's under `use("auto")`. `extra_info` has every provider's
seconds, round by round, taken in turns, and what the pass must move and compute. Before anything is
timed fastalex's results are held against plain float32.

    triton, auto      fastalex, under use("triton") and use("auto")
    torch             stock ops, bfloat16, channels_last; convolution by cuDNN, ReLU in place
    torch-autocast    the same under autocast, which takes normalization to float32
    torch-compiled    the same under torch.compile
    aten-compiled     fastalex's own formula in ATen under torch.compile
    torch-split       each group a convolution of its own
    cudnn-fused       cuDNN's convolution + bias + ReLU, forward only
    torch-fused       torch.optim.SGD(fused=True), another formula of the same traffic

At the end: a table of times, the share of the device's limit that `auto` reaches (the larger of
traffic at the speed of a large copy and arithmetic at the speed of a large matrix product, both
measured here), and for which layers and passes of conv2d_relu Triton was chosen.

With `-k` a part of it: "norm1", "conv and paper", "1024 and not conv". What has not begun after
nine minutes is skipped, so that the JSON is written; on a GPU whose compilers' caches are empty,
ask for "conv" and "not conv" in turn. On a CPU it takes some seconds: float32, small shapes, ATen
and stock torch only, so its figures mean nothing but that the benchmark runs.
"""

import statistics
import time
from dataclasses import asdict

import pytest
import torch
from _kernel_cases import CASES, DEVICE, GPU, Case, work_of
from _kernel_device import Clock, Limits, limits
from _kernel_warm import warm
from _kernel_work import OURS, Prepared, Work
from kernel_summary import summary

from fastalex import kernels

WARM_UP, ROUNDS = 3, 20 if GPU else 3
TOLERANCE = 0.01 if GPU else 1e-4
"""Root mean square error, relative; one wrong image in a thousand is three times bfloat16's."""
SECONDS_A_PASS = 3 if GPU else 0.1
BUDGET_SECONDS = 540

PASSES = [
    pytest.param(case, which, id=f"{case.name}-{which}") for case in CASES for which in case.passes
]


class Results:
    """Collects the passes; adds them up at the end, on the terminal and in the JSON."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.clock = Clock(DEVICE)
        self.limits: Limits = limits(DEVICE, self.clock)
        self.passes: list[dict] = []

    def as_dict(self) -> dict:
        choices = [asdict(choice) | {"winner": choice.winner} for choice in kernels.report()]
        return {"limits": asdict(self.limits), "passes": self.passes, "choices": choices}

    def pytest_terminal_summary(self, terminalreporter) -> None:
        terminalreporter.write_line(f"limits: {self.limits}")
        terminalreporter.write_line(summary(self.as_dict()))

    def pytest_benchmark_update_json(self, output_json: dict) -> None:
        output_json["kernels"] = self.as_dict()


@pytest.fixture(scope="session")
def results(request):
    wanted = {
        item.callspec.params["case"].name: None
        for item in request.session.items
        if item.name.startswith("bench_kernel[")
    }
    count = sum(item.name.startswith("bench_kernel[") for item in request.session.items)
    terminal = request.config.get_terminal_writer()
    terminal.line(f"\n{count} passes, about {count * SECONDS_A_PASS:.0f} s")
    began = time.monotonic()
    if GPU:
        warm(list(wanted))
    torch.backends.cudnn.benchmark = True
    results = Results(began)
    request.config.pluginmanager.register(results, "kernel-results")
    yield results
    torch.backends.cudnn.benchmark = False


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
def bench_kernel(case: Case, which: str, results: Results, benchmark) -> None:
    if time.monotonic() - results.began > BUDGET_SECONDS:
        pytest.skip(f"{BUDGET_SECONDS} s are over; ask for it with -k")
    work, clock = work_of(case), results.clock
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
    seconds = {name: each[WARM_UP:] for name, each in seconds.items()}
    cost = work.passes[which]
    row = {
        "case": case.name,
        "pass": which,
        "medians": {name: statistics.median(each) for name, each in seconds.items()},
        "limit": results.limits.seconds(cost.moved, cost.flops),
        "moved_bytes": cost.moved,
        "flops": cost.flops,
        "errors": errors,
        "failed": failed,
    }
    results.passes.append(row)
    benchmark.extra_info.update(row, seconds=seconds)
