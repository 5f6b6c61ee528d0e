"""The log's files: what TensorBoard reads back, what a resumed run drops, what a full disk says."""

import errno
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastalex.errors import RunError
from fastalex.train.log import RunLog, read_log


def training(step: int) -> dict:
    return {"step": step, "epoch": 0, "loss": 1 / step, "lr": 0.1, "images_per_s": 9.0}


def validation(step: int) -> dict:
    return {"step": step, "epoch": 1, "val_loss": 2.0, "top1_error": 0.5, "top5_error": 0.25}


def test_tensorboard_reads_every_scalar_once_though_the_run_was_killed(tmp_path):
    for first, last in ((0, 5), (3, 6)):
        log = RunLog(tmp_path, step=first, total_steps=6)
        log.training([training(step) for step in range(first + 1, last + 1)])
        log.validation(validation(last), epochs=1)
        log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/lr", "train/images_per_s",
        "val/val_loss", "val/top1_error", "val/top5_error",
    }  # fmt: skip
    assert [(x.step, x.value) for x in events.Scalars("train/loss")] == [
        (step, pytest.approx(1 / step)) for step in range(1, 7)
    ]
    assert [x.step for x in events.Scalars("val/top1_error")] == [6]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    log = RunLog(tmp_path, step=0, total_steps=6)
    log.training([training(step) for step in (1, 2, 3, 4)])
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "ep')  # torn by the kill
    RunLog(tmp_path, step=2, total_steps=6).close()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]


@pytest.mark.parametrize("broken", ["_file", "_events"])
def test_a_full_disk_names_the_log_and_the_way_on(tmp_path, monkeypatch, broken):
    log = RunLog(tmp_path, step=0, total_steps=6)

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def scalars(self, *_):
            self.write(b"")

        def close(self):
            pass

    getattr(log, broken).close()
    monkeypatch.setattr(log, broken, Full())
    with pytest.raises(RunError, match=r"log\.jsonl cannot be written \(No space.*--resume"):
        log.training([training(1)])
    log.close()


def test_a_later_signal_acts_as_before(monkeypatch):
    """One that comes as soon as this is the first once more, from the terminal and a launcher."""
    import signal

    from fastalex.train.signals import StopOnSignal

    now = [100.0]
    monkeypatch.setattr("fastalex.train.signals.time.monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGINT)
    with StopOnSignal() as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        now[0] += 0.3
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 3.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
