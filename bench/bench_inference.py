"""Inference: fastalex's `AlexNet.eval()` beside stock PyTorch, two networks, batch 1 to 1024.

    python -m bench inference            # three processes, a table, the JSON, docs/performance.md
    pytest bench/bench_inference.py      # this process alone

As bench_step.py. At batch 1 a sample is a latency: from the call to the answer, one at a time. The
comparison is the best of ours with the best of theirs. Who they are: `_inference.py`.
"""

import _inference
import pytest
from _group import Group, Kind
from _session import Session
from _settings import INFERENCES, Setting

pytestmark = pytest.mark.filterwarnings("default")  # the compilers' advice is no failure of a peer


@pytest.fixture(scope="session")
def ready(session: Session) -> Session:
    """What torch.compile makes, but for what autotunes, which wants the device for itself."""
    settings = [Setting(*each) for each in INFERENCES]
    names = [
        f"{setting} {name}"
        for setting in settings
        for name, provider in _inference.providers(setting).items()
        if (provider.compiled or provider.ours) and not provider.slow
    ]
    session.compile_ahead("inference", names)
    return session


KIND = Kind(
    part="inference",
    plain=_inference.PLAIN,
    reference=_inference.reference,
    outcome=_inference.outcome,
    gate=lambda provider, setting: provider.build(setting),
    timed=None,
    training=False,
)


@pytest.mark.parametrize("setting", [Setting(*each) for each in INFERENCES], ids=str)
def bench_inference(setting: Setting, ready: Session, benchmark) -> None:
    place = INFERENCES.index((setting.network, setting.batch))
    seconds = ready.share(1.0, len(INFERENCES) - place)
    Group(KIND, setting, _inference.providers(setting), ready, seconds=seconds).run(benchmark)
