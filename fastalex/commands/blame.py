"""From how the ranks ended to the one error to report: the rank and the cause.

For `ranks`. torch's own answer, the earliest time in whole seconds, takes a rank that the launcher
stopped, or one that lost its peer, for the cause.
"""

import signal
from typing import NamedTuple

from torch.distributed.elastic.multiprocessing import ProcessFailure

from fastalex.errors import RunError, Stopped, UsageError

_STOPPING = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL}


class End(NamedTuple):
    """How a rank that did not end well ended."""

    rank: int
    code: int
    """Of the exit; -n for signal n."""
    text: str | None = None
    """The word it left; None: none."""
    consequence: bool = False
    """Its word is that another rank has gone."""
    time: float = 0.0
    """Seconds since the epoch, when it left its word."""
    told: bool = False
    """It was alive when the launcher told it to stop."""


def end_of(rank: int, failure: ProcessFailure, *, told: bool) -> End:
    """torch's report as an `End`."""
    message = failure.error_file_data["message"]
    if not isinstance(message, dict):
        return End(rank, failure.exitcode, told=told)
    extra = message["extraInfo"]
    return End(
        rank,
        failure.exitcode,
        message["message"],
        extra.get("consequence", False),
        extra.get("time", failure.timestamp),
        told,
    )


def error_for(ends: list[End], processes: int) -> Exception:
    """The error of a run in which not all of `processes` ranks ended well, all by themselves."""
    first = min(ends, key=_precedence)
    if first.text is None:
        return RunError(f"rank {first.rank} {_how(first.code)}")
    alike = sum(end.text == first.text for end in ends) == processes
    named = alike or first.text.startswith("rank ")
    text = first.text if named else f"rank {first.rank}: {first.text}"
    if first.consequence and (well := set(range(processes)) - {end.rank for end in ends}):
        text += f" (rank {min(well)} had ended early, with no error)"
    if first.code >= 128:
        return Stopped(text, first.code - 128)
    return (UsageError if first.code == 2 else RunError)(text)


def error_for_stopped(ends: list[End], processes: int, signum: int, patience: float) -> Exception:
    """The same for a run that was told to stop by signal `signum`, to be done within `patience` s.

    A rank that could not save, say, comes before the signal.
    """
    failed = [end for end in ends if _precedence(end)[0] < 3]
    if failed:
        return error_for(failed, processes)
    name = signal.Signals(signum).name
    late = next((end.rank for end in ends if end.code == -signal.SIGKILL), None)
    if late is not None:
        return Stopped(
            f"stopped by {name}; rank {late} was killed, not done {patience:g} s after it", signum
        )
    words = [end.text for end in sorted(ends) if end.text is not None and end.code >= 128]
    return Stopped(words[0] if words else f"stopped by {name}", signum)


def _precedence(end: End) -> tuple[int, float, int]:
    """Who is to blame: the least."""
    if end.told and (end.code in _STOPPING or end.code >= 128):
        kind = 5  # as it was told
    elif end.consequence:
        kind = 4
    elif end.text is not None:
        kind = 3 if end.code >= 128 else 1
    else:
        # Nobody's death makes another rank crash, but NCCL aborts a process that lost a peer.
        kind = 0 if end.code < 0 and end.code != -signal.SIGABRT else 2
    return kind, end.time, end.rank


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}, saying no more than is printed above"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = "out of memory?" if code == -signal.SIGKILL else "--debug shows where"
    return f"was killed by {name} ({why}); --resume goes on from the last checkpoint"
