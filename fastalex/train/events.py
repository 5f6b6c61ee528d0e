"""TensorBoard scalars, written as they come.

torch's SummaryWriter writes from a thread of its own, whose errors (a full disk) end as a traceback
that nobody can catch; this is the same file format, from the same protocol buffers, without it.
"""

# The protocol buffers' modules make their names when imported, where pyright cannot see them.
# pyright: reportAttributeAccessIssue=false

import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new event file in `run`; what older ones there have from step `first_step` on is void."""

    def __init__(self, run: Path, first_step: int) -> None:
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        self._file = open(run / name, "wb")  # noqa: SIM115 - closed in close()
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=now, step=first_step, session_log=start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add `values` by tag, at `step`."""
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
