"""A whole training step: fastalex beside stock PyTorch, two networks, several batches.

    python -m bench step            # three processes, a table, the JSON and docs/performance.md
    pytest bench/bench_step.py      # this process alone; -k "paper and 1024" for a part

A benchmark is one network at one batch; its figure is fastalex's. `extra_info` has every provider's
seconds a step, sample by sample, its peak memory, its first call and its error at the gate. Who the
providers are: `_step.py`; how they are timed: `_measure.py`; the gate: `_gate.py`; the limit:
`_floor.py`. On a GPU the last one is the ablation: fastalex with each op in turn by ATen.
"""

import _ablation
import _step
import pytest
from _gate import outcome
from _group import Group, Kind
from _machine import GPU
from _session import Session
from _settings import GATE, STEPS, TIMED, Setting

pytestmark = pytest.mark.filterwarnings("default")  # the compilers' advice is no failure of a peer


@pytest.fixture(scope="session")
def ready(session: Session) -> Session:
    """What torch.compile makes, but for what autotunes, which wants the device for itself."""
    settings = [Setting(*each) for each in STEPS]
    names = [
        f"{setting} {name}"
        for setting in settings
        for name, provider in _step.providers(setting).items()
        if provider.compiled and not provider.ours and not provider.slow
    ]
    session.compile_ahead("step", names)
    return session


KIND = Kind(
    part="step",
    plain=_step.PLAIN,
    reference=_step.reference,
    outcome=outcome,
    gate=lambda provider, setting: provider.build(setting, GATE),
    timed=lambda provider, setting: provider.build(setting, TIMED),
    training=True,
)
WEIGHTS = {str(Setting(*step)): 3.0 if place < 2 else 1.0 for place, step in enumerate(STEPS)}
"""Shares of the time: the headline's are the largest."""
ABLATED = Setting("paper", 1024)
ABLATION = 1.5


@pytest.mark.parametrize("setting", [Setting(*step) for step in STEPS], ids=str)
def bench_step(setting: Setting, ready: Session, benchmark) -> None:
    later = list(WEIGHTS)[list(WEIGHTS).index(str(setting)) :]
    weights_left = sum(WEIGHTS[key] for key in later) + (ABLATION if GPU else 0.0)
    seconds = ready.share(WEIGHTS[str(setting)], weights_left)
    Group(KIND, setting, _step.providers(setting), ready, seconds=seconds).run(benchmark)


@pytest.mark.skipif(not GPU, reason="on a CPU the ops are ATen's")
def bench_ablation(ready: Session, benchmark) -> None:
    """Last: what it gets of the time is what is left."""
    Group(KIND, ABLATED, _ablation.providers(), ready, key="ablation").run(benchmark)
