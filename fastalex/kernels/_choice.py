"""Which candidate computes an op: timed once per device, op, shape, dtype and pass, and remembered.

For the triton_ops of this package (`choose`) and for people (`report`, exported by the package).

The times lie in one small file per kind of GPU and version of torch, triton and fastalex, below
`fastalex.files.cache_dir()`; `_choice_file` reads and writes it. An op that cannot be timed (sizes
unknown while torch.compile traces, a CUDA graph being captured, no memory to spare) takes torch's.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastalex.kernels import _choice_file

MARGIN = 0.98
"""Triton is taken where it needs less than this share of torch's time: below that is noise."""

_log = logging.getLogger(__name__)
_lock = threading.RLock()
_here = threading.local()
"""`.timing` in the thread of the trials: an op inside a trial does not time in its turn."""
_made: "dict[tuple[str, str, str, str], Choice]" = {}
_winners: dict[tuple[Any, ...], str] = {}
"""The answers given, by what `choose` was asked: what a call costs once its case is known."""


@dataclass(frozen=True)
class Choice:
    """One decision: `times` are milliseconds by candidate, None where a candidate failed."""

    device: str
    op: str
    direction: str
    case: str
    """Dtype, shape and layout of each operand, then the op's other arguments."""
    times: dict[str, float | None]

    @property
    def winner(self) -> str:
        """The quickest; "aten" unless a Triton candidate is quicker by more than noise."""
        spent = {name: time for name, time in self.times.items() if time is not None}
        best = min(spent, key=lambda name: spent[name], default="aten")
        return best if spent.get(best, math.inf) < MARGIN * spent.get("aten", math.inf) else "aten"

    @property
    def gain(self) -> float | None:
        """Torch's time over the quickest Triton candidate's; None where either failed."""
        ours = [t for name, t in self.times.items() if name != "aten" and t is not None]
        aten = self.times.get("aten")
        return aten / min(ours) if ours and aten is not None else None


class Report(tuple[Choice, ...]):
    """The choices, in the order they were first needed; printed, a table."""

    def __str__(self) -> str:
        if not self:
            return (
                "no choice has been made yet: on a CPU the ops compute with ATen, on a GPU "
                "under use('auto') each is timed when it is first called"
            )
        head = ("op", "pass", "chosen", "ms", "torch ms", "torch / Triton", "operands; arguments")
        rows = [head, *map(_row, self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
        lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]) for row in rows]
        return "\n".join(lines)

    __repr__ = __str__


def _row(choice: Choice) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "failed" if value is None else format(value, form)

    return (
        choice.op,
        choice.direction,
        choice.winner,
        shown(choice.times.get(choice.winner), ".4f"),
        shown(choice.times.get("aten"), ".4f"),
        shown(choice.gain, ".2f"),
        choice.case,
    )


def report() -> Report:
    """What `auto` chose in this process, with the measured times; print it, or read the fields.

    Each entry has `op`, `direction` (the pass), `case`, `times` in milliseconds by candidate,
    `winner` and `gain` (torch's time over Triton's). Choices remembered from an earlier process
    appear once they are used.
    """
    with _lock:
        return Report(_made.values())


def choose(
    op: str,
    direction: str,
    mode: str,
    candidates: tuple[str, ...],
    trial: Callable[..., object],
    operands: tuple[Tensor | None, ...],
    settings: tuple[Any, ...] = (),
) -> str:
    """The candidate that is to compute this call.

    Args:
        op, direction: the op's name and its pass, for the memory and the report.
        mode: a mode of `use`, or the name of a candidate, which is then taken.
        candidates: "aten" first, then Triton's, the default one foremost.
        trial: `trial(name, *operands)` computes with one candidate. It gets operands of its own and
            runs in another thread, which no tracing, autocast or graph mode of this one reaches.
        operands: tensors or None; the first is on the device in question. They may be fake.
        settings: the other arguments that the time depends on.
    """
    if mode in candidates:
        return mode
    if mode == "triton":
        return candidates[1]
    device = next(x.device for x in operands if x is not None)
    if device.type != "cuda" or not torch.cuda.is_available() or hasattr(_here, "timing"):
        return "aten"
    sizes = [None if x is None else _sizes(x) for x in operands]
    call = (
        op,
        direction,
        device,
        candidates,
        settings,
        *zip(map(_dtype, operands), sizes, strict=True),
    )
    winner = _winners.get(call)
    if winner is not None:
        return winner
    what = op, direction, _case(operands, sizes, settings)
    with _lock:
        name = torch.cuda.get_device_name(device)
        times = _known_times(name, what, candidates)
        if times is None:
            if torch.cuda.is_current_stream_capturing() or None in _flat(sizes):
                return "aten"
            with ThreadPoolExecutor(1) as alone:
                times = alone.submit(
                    _measure, device, what, candidates, trial, operands, sizes
                ).result()
        choice = Choice(name, *what, {c: times[c] for c in candidates})
        _made[(name, *what)], _winners[call] = choice, choice.winner
        return choice.winner


def _known_times(
    device: str, what: tuple[str, str, str], candidates: tuple[str, ...]
) -> _choice_file.Times | None:
    """Of all `candidates`, from this process or an earlier one."""
    made = _made.get((device, *what))
    for times in (made and made.times, _choice_file.recall(device, "|".join(what))):
        if times is not None and times.keys() >= set(candidates):
            return times
    return None


def _measure(
    device: torch.device,
    what: tuple[str, str, str],
    candidates: tuple[str, ...],
    trial: Callable[..., object],
    operands: tuple[Tensor | None, ...],
    sizes: list[Any],
) -> _choice_file.Times:
    """Fresh times, kept in the file; where memory does not suffice, torch's for this process."""
    _here.timing = True
    try:
        with torch.cuda.device(device):
            own = [_like(x, size) for x, size in zip(operands, sizes, strict=True)]
            times = {c: _milliseconds(what[0], c, trial, own) for c in candidates}
    except torch.cuda.OutOfMemoryError:
        _log.warning("%s (%s): no memory to time %s; torch's op is used", *what)
        return {c: 0.0 if c == "aten" else None for c in candidates}
    _choice_file.remember(torch.cuda.get_device_name(device), "|".join(what), times)
    return times


def _milliseconds(
    op: str, candidate: str, trial: Callable[..., object], operands: list[Tensor | None]
) -> float | None:
    """Median time; None, and a line in the log, for one that this device or compiler refuses."""
    from triton.testing import do_bench  # here, since triton need not be installed

    try:
        time = do_bench(lambda: trial(candidate, *operands), warmup=5, rep=40, return_mode="median")
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        if candidate == "aten":
            raise
        _log.warning("%s: %s cannot be used here (%s)", op, candidate, error)
        return None
    return float(time)  # pyright: ignore[reportArgumentType]


def _like(x: Tensor | None, size: Any) -> Tensor | None:
    """A real tensor in the sizes and strides of `x`: normal numbers, or zeros for integers."""
    if x is None:
        return None
    own = torch.empty_strided(*size, dtype=x.dtype, device=x.device)
    memory = own.as_strided((own.untyped_storage().nbytes() // own.element_size(),), (1,), 0)
    _ = memory.normal_() if x.is_floating_point() else memory.zero_()  # strides may overlap
    return own


def _dtype(x: Tensor | None) -> torch.dtype | None:
    return None if x is None else x.dtype


def _sizes(x: Tensor) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Shape and strides; a size that is a symbol stands for the one it was traced with."""
    return tuple(map(_known, x.shape)), tuple(map(_known, x.stride()))


def _known(size: Any) -> int | None:
    return size if isinstance(size, int) else size.node.hint


def _flat(sizes: Iterable[Any]) -> list[int | None]:
    return [n for pair in sizes if pair is not None for part in pair for n in part]


def _case(
    operands: Iterable[Tensor | None], sizes: Iterable[Any], settings: tuple[Any, ...]
) -> str:
    described = [
        "none" if x is None else f"{str(x.dtype)[6:]} {list(size[0])} by {list(size[1])}"
        for x, size in zip(operands, sizes, strict=True)
    ]
    return "; ".join([*described, *map(str, settings)])
