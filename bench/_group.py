"""One network at one batch: every provider gated, warmed up, and timed beside the others.

For bench_step.py and bench_inference.py. Ours are an error of the run where they fail; a peer that
fails, or computes something else, is a row with its reason.
"""

import contextlib
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import _floor
import _gate
import torch
from _machine import GPU
from _measure import Turns, memory, peak_memory, synchronize, warm_up
from _session import Session
from _settings import Setting
from _step import Provider
from torch import Tensor

TIMING_SHARE = 0.3 if GPU else 0.5
"""Of a group's time, kept for the measurement itself."""


@dataclass(frozen=True)
class Kind:
    """What is measured: a training step or an inference."""

    part: str
    plain: str
    """The provider whose error in half precision is the measure of the others'."""
    reference: Callable[[Setting], dict[str, Tensor]]
    outcome: Callable[[Any], dict[str, Tensor]]
    gate: Callable[[Provider, Setting], Any]
    """Builds a provider for the gate."""
    timed: Callable[[Provider, Setting], Any] | None
    """Builds it for the measurement; None: what passed the gate is measured."""
    training: bool


class Group:
    """Measures `providers` of one setting; `run` leaves its row with the session."""

    def __init__(
        self, kind: Kind, setting: Setting, providers: dict[str, Provider], session: Session,
        key: str = "", seconds: float | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.setting, self.providers, self.session = kind, setting, providers, session
        self.end = time.monotonic() + (session.left if seconds is None else seconds)
        self._reserve = TIMING_SHARE * max(self.end - time.monotonic(), 0.0)
        self.row: dict[str, Any] = {
            "part": kind.part, "key": key or str(setting), "network": setting.network,
            "batch": setting.batch, "floor_s": self._floor(),
            "providers": {}, "failed": {}, "left_out": {},
        }  # fmt: skip
        self._right: dict[str, Tensor] | None = None
        self._calls: dict[str, tuple[Callable[[], Tensor], float]] = {}

    def run(self, benchmark: Any) -> dict[str, Any]:
        """The row; raises AssertionError where one of ours failed."""
        for name, provider in self.providers.items():
            if reason := self._no_time(name, provider):
                self.row["left_out"][name] = reason
                self.session.say(f"{self.row['key']} {name}: left out, {reason}")
                continue
            self._make_ready(name, provider)
        self._right = None
        if self._calls:
            self._time(benchmark)
        self._calls.clear()
        tidy()
        self.session.write(self.row)
        ours = {n: r for n, r in self.row["failed"].items() if self.providers[n].ours}
        assert not ours, ours
        return self.row

    def _no_time(self, name: str, provider: Provider) -> str:
        """Why a provider is not even built; empty where it is."""
        first = self.session.first_row(self.row["key"])
        if first is not None and name not in first["providers"]:
            return "as in the first process"
        left = self.end - time.monotonic()
        if left <= 0 or self.session.left <= 0:
            return "no time left"
        expected = self.session.expects(self.row["key"], name, provider.compiled, provider.slow)
        spare = max(left - self._reserve, 0.0)
        if provider.compiled and expected > spare:
            return f"no time left: {spare:.0f} s, and it would take about {expected:.0f} s"
        return ""

    def _make_ready(self, name: str, provider: Provider) -> None:
        start = time.monotonic()
        before = memory()
        try:
            entry = self._gated(name, provider)
            running = entry.pop("running", None)
            if running is None:
                tidy(compiled=False)  # the one that was built for the gate
                before = memory()
                running = (self.kind.timed or self.kind.gate)(provider, self.setting)
            running.step()
            synchronize()
            entry.setdefault("first_call_s", time.monotonic() - start)
            spent = warm_up(running.step)
            entry["peak_bytes"] = peak_memory(running.step, before)
        except Exception as error:
            self._fail(name, error)
            return
        self.session.took(name, time.monotonic() - start)
        ahead = self.session.first_calls.get(f"{self.row['key']} {name}")
        entry["first_call_s"] = ahead or entry["first_call_s"]
        self._calls[name] = running.step, spent
        self.row["providers"][name] = {"says": provider.says, "ours": provider.ours, **entry}
        self.session.say(
            f"{self.row['key']} {name}: ready in {time.monotonic() - start:.1f} s, "
            f"about {1e3 * spent:.3g} ms"
        )

    def _gated(self, name: str, provider: Provider) -> dict[str, Any]:
        """What the gate says: error, at which batch, and where it was built anew the time it took.

        Compiled providers pass once for a network, the others at each batch; in later processes
        the first one's verdict holds.
        """
        first = self.session.first_row(self.row["key"])
        if first is not None:
            known = first["providers"][name]
            return {key: known[key] for key in ("error", "gated_at", "first_call_s")}
        done = self.session.gated.get((self.setting.network, name))
        holds = done is not None and (provider.compiled or done["gated_at"] == self.setting.batch)
        if holds and self.kind.timed is not None:
            return dict(done)
        if self._right is None:
            self._right = self.kind.reference(self.setting)
            tidy(compiled=False)
        start = time.monotonic()
        running = self.kind.gate(provider, self.setting)
        found = _gate.errors(self.kind.outcome(running), self._right)
        spent = time.monotonic() - start
        if name == self.kind.plain:
            self.session.plain[self.setting] = found
        verdict = {
            "error": _gate.check(found, provider.half, self.session.plain.get(self.setting, {})),
            "gated_at": self.setting.batch,
        }
        self.session.gated[self.setting.network, name] = verdict
        kept = {} if self.kind.timed is not None else {"running": running}
        return {**verdict, "first_call_s": spent, **kept}

    def _fail(self, name: str, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, _gate.GateError) else f"{type(error).__name__}: "
        self.row["failed"][name] = reason = f"{kind}{lines[0]}"[:300]
        self.session.say(f"{self.row['key']} {name}: failed, {reason}")
        del error
        tidy(compiled=False)

    def _time(self, benchmark: Any) -> None:
        latency = not self.kind.training and self.setting.batch == 1
        shown = next((n for n in self._calls if self.providers[n].ours), next(iter(self._calls)))
        turns = Turns(self._calls, shown, latency)
        rounds = turns.rounds_in(self.end - time.monotonic())
        benchmark._timer = turns.clock
        benchmark.pedantic(turns.one_round, rounds=rounds)
        for name, samples in turns.samples.items():
            self.row["providers"][name]["samples"] = samples
            if not bool(self._calls[name][0]().isfinite().all()):
                self.row["failed"][name] = "its numbers were not finite at the end"
                del self.row["providers"][name]
        benchmark.extra_info.update(self.row)

    def _floor(self) -> float:
        setting, config = self.setting, self.setting.config
        half = config.precision != "fp32"
        found = _floor.costs(
            config.variant, config.width, setting.classes, setting.batch, 2 if half else 4,
            self.kind.training,
        )  # fmt: skip
        limits = self.session.limits
        return _floor.seconds(found, limits["copy"], limits["bf16" if half else "fp32"])


def tidy(compiled: bool = True) -> None:
    """Gives memory back; with `compiled`, what was compiled, too."""
    if compiled and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if GPU:
        with contextlib.suppress(RuntimeError):  # after an error of the device nothing works
            torch.cuda.empty_cache()
