"""From how ranks ended to the one error to report."""

import signal
import time

from torch.distributed.elastic.multiprocessing import ProcessFailure

from fastalex.commands import rank
from fastalex.commands.blame import End, end_of, error_for, error_for_stopped
from fastalex.errors import RunError, Stopped


def test_crashes_come_before_words_and_words_before_aborts():
    nan = End(0, 1, "the loss is nan", time=7.0)
    assert "rank 1 was killed by SIGBUS" in str(error_for([nan, End(1, -signal.SIGBUS)], 2))
    assert str(error_for([nan, End(1, -signal.SIGABRT)], 2)) == "rank 0: the loss is nan"
    assert str(error_for([nan, End(1, 2, "no disk", time=6.0)], 2)) == "rank 1: no disk"


def test_of_two_words_in_the_same_second_the_first_counts(tmp_path, monkeypatch):
    ends = []
    for number, (text, now) in enumerate([("its echo", 7.6), ("the cause", 7.1)]):
        word = str(tmp_path / str(number))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", word)
        monkeypatch.setattr(time, "time", lambda now=now: now)
        rank.leave_word(RunError(text), 1, text, consequence=False)
        ends.append(end_of(number, ProcessFailure(number, 0, 1, word), told=False))
    assert str(error_for(ends, 2)) == "rank 1: the cause"


def test_a_hang_is_told_as_the_rank_that_found_it_has_it():
    found = End(0, 1, "rank 1 hangs at step 8", consequence=True)
    assert str(error_for([found, End(1, -9, told=True)], 2)) == "rank 1 hangs at step 8"


def test_one_rank_alone_told_to_stop_by_others_than_the_launcher():
    ends = [End(0, 143, "terminated", told=True), End(1, 143, "stopped by SIGTERM at step 8")]
    error = error_for(ends, 2)
    assert isinstance(error, Stopped)
    assert str(error) == "rank 1: stopped by SIGTERM at step 8"


def test_a_rank_that_does_not_end_after_a_signal_is_named():
    ends = [End(0, 143, "stopped", told=True), End(1, -signal.SIGKILL, told=True)]
    error = error_for_stopped(ends, 2, signal.SIGTERM, 120)
    assert isinstance(error, Stopped)
    assert error.signum == signal.SIGTERM
    assert "rank 1 was killed, not done 120 s after" in str(error)
