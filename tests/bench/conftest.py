"""A network small enough to be measured in a test, and a benchmark fixture's stand-in."""

from dataclasses import dataclass, replace

import pytest
from _session import Session
from _settings import Setting

from fastalex.train.recipes import recipe


@dataclass(frozen=True)
class Tiny(Setting):
    """The demo's network at a sixteenth of the width, in float32 on any machine."""

    network: str = "demo"
    batch: int = 2

    @property
    def config(self):
        return replace(recipe("demo", "cpu"), width=1 / 16, batch_size=self.batch, precision="fp32")


class FakeBenchmark:
    """Runs the rounds, as pytest-benchmark would."""

    def __init__(self) -> None:
        self.extra_info: dict = {}
        self.rounds = 0

    def pedantic(self, call, rounds: int) -> None:
        self.rounds = rounds
        for _ in range(rounds):
            call()


@pytest.fixture
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def benchmark_stub() -> FakeBenchmark:
    return FakeBenchmark()


@pytest.fixture
def session(tmp_path) -> Session:
    """With limits that nobody had to measure."""
    made = Session(tmp_path / "rows.jsonl", None, None)
    made.__dict__["limits"] = {"copy": 1e10, "bf16": 1e11, "fp32": 1e11}
    return made
