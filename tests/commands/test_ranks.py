"""Two ranks that fail, are stopped or are killed: who is blamed, and that nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import ProcessFailure

from fastalex.commands import ranks
from fastalex.errors import RunError, UsageError

from .conftest import ROOT, Result, finish

SAVING = ("save", "full_disk")
WORKER = str(Path(__file__).with_name("ranks_worker.py"))


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def is_there(pid: int) -> bool:
    """Whether a process runs, dead ones that nobody has collected not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(folder: Path) -> list[int]:
    return [int((folder / str(rank)).read_text()) for rank in range(2)]


FAILURES = [
    (("usage", "wait"), UsageError, "rank 0: --lr -1: must be positive"),
    (("wait", "run"), RunError, "rank 1: the loss is nan at step 3"),
    (("plain", "wait"), RunError, "rank 0: KeyError: 'surprise' (--debug shows where)"),
    (("peer_lost", "kill"), RunError, "rank 1 was killed by SIGKILL (out of memory?)"),
    (("segfault", "wait"), RunError, "rank 0 was killed by SIGSEGV"),
    (("wait", "exit_3"), RunError, "rank 1 ended with exit code 3"),
    (("peer_lost", "late_run"), RunError, "rank 1: the loss is nan at step 3"),
    (("exit_0", "peer_lost"), RunError, "rank 1: another rank has gone (rank 0 had ended early"),
    (("late_run", "run"), RunError, "the loss is nan at step 3"),
]


@pytest.mark.parametrize(
    ("deeds", "kind", "line"), FAILURES, ids=lambda x: "-".join(x) if isinstance(x, tuple) else ""
)
def test_the_error_is_one_line_that_names_the_rank_and_the_cause(
    deeds, kind, line, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(ranks, "SECONDS_ALIKE", 0.2 if "wait" in deeds else 20.0)
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        ranks.run([WORKER, str(tmp_path), *deeds], 2)
    assert time.monotonic() - started < 15
    assert str(caught.value).startswith(line)
    assert type(caught.value) is kind
    assert capfd.readouterr() == ("", "")
    assert not any(map(is_there, pids(tmp_path)))


def test_a_rank_that_waits_for_a_failed_one_for_ever_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "SECONDS_ALIKE", 0.2)
    monkeypatch.setattr(ranks, "SECONDS_TO_STOP", 1)
    with pytest.raises(RunError, match=r"^rank 1: the loss is nan"):
        ranks.run([WORKER, str(tmp_path), "deaf", "run"], 2)
    assert not any(map(is_there, pids(tmp_path)))


def test_a_rank_that_ends_well_before_the_other_is_no_error(tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)
    ranks.run([WORKER, str(tmp_path), "exit_0", "work"], 2)
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGTERM) is before


def test_ranks_know_who_they_are_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    ranks.run([WORKER, str(tmp_path), "say", "say"], 2)
    assert [(tmp_path / f"said-{r}").read_text() for r in range(2)] == ["0 0 2 2 3", "1 1 2 2 3"]


def test_a_command_whose_ranks_all_fail_alike_blames_none(tmp_path, capfd, monkeypatch):
    """Through `start`; on a busy machine one rank may come to its error long after the other."""
    monkeypatch.setattr(ranks, "SECONDS_ALIKE", 20.0)
    with pytest.raises(UsageError, match=r"^image folder: /no/such/folder"):
        ranks.start("prepare", ["/no/such/folder", str(tmp_path)], 2)
    assert capfd.readouterr() == ("", "")


def test_debug_has_each_rank_show_its_traceback(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(ranks, "SECONDS_ALIKE", 20.0)
    monkeypatch.setattr(sys, "argv", ["fastalex-prepare", "--debug"])
    with pytest.raises(UsageError, match=r"^image folder: /no/such/folder"):
        ranks.start("prepare", ["/no/such/folder", str(tmp_path)], 2)
    assert capfd.readouterr().err.count("Traceback") == 2


def begin(folder: Path, *deeds: str) -> subprocess.Popen:
    """The launcher as a process of its own, once its ranks have begun."""
    process = subprocess.Popen(
        [sys.executable, WORKER, str(folder), *deeds],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wanted = [folder / (f"saves-{r}" if deeds[r] in SAVING else f"{r}") for r in (0, 1)]
    until = time.monotonic() + 60
    while not all(path.exists() for path in wanted):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def end(process: subprocess.Popen, folder: Path) -> Result:
    result = finish(process, timeout=30)
    assert not any(map(is_there, pids(folder)))
    return result


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_lets_all_ranks_save(tmp_path, name, code):
    """As often as it comes at once: from the terminal, and from what started the command."""
    process = begin(tmp_path, "save", "save")
    for _ in range(3):
        process.send_signal(getattr(signal, name))
        time.sleep(0.02)
    result = end(process, tmp_path)
    result.assert_one_line(code, f"fastalex-train: stopped by {name} at step 8, saved")
    assert [(tmp_path / f"saved-{r}").read_text() for r in range(2)] == ["after 1 signals"] * 2


def test_what_goes_wrong_while_saving_is_told(tmp_path):
    process = begin(tmp_path, "full_disk", "save")
    process.send_signal(signal.SIGHUP)
    end(process, tmp_path).assert_one_line(1, "rank 0: last.pt cannot be written")


def test_a_signal_while_ranks_import_what_swallows_exceptions(tmp_path):
    """The launcher sends it once; a rank that missed it would go on."""
    process = begin(tmp_path, "swallow", "swallow")
    process.send_signal(signal.SIGTERM)
    end(process, tmp_path).assert_one_line(143, "fastalex-train: terminated")


def test_a_second_ctrl_c_kills_at_once(tmp_path):
    process = begin(tmp_path, "deaf", "save")
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    end(process, tmp_path).assert_one_line(130, "killed by a second signal, SIGINT")
    assert time.monotonic() - sent < 5
    assert not (tmp_path / "saved-1").exists()


def test_no_rank_survives_a_launcher_that_is_killed(tmp_path):
    process = begin(tmp_path, "deaf", "wait")
    with process:  # waits for its end, not for that of its output, which ranks could write on
        process.kill()
    until = time.monotonic() + 2
    while any(map(is_there, pids(tmp_path))) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_there, pids(tmp_path)))


def test_a_rank_whose_launcher_died_before_it_began_ends(tmp_path):
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "FASTALEX_LAUNCHER": "1"}
    done = subprocess.run([sys.executable, WORKER, str(tmp_path), "say"], env=environment)
    assert done.returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("deed", "code"), [("usage", 2), ("run", 1)])
def test_under_torchrun_a_rank_says_itself_what_it_is(tmp_path, deed, code):
    """And hands it over, in the form that torchrun reads."""
    word = tmp_path / "error.json"
    environment = {
        **os.environ,
        "RANK": "0",
        "WORLD_SIZE": "1",
        "TORCHELASTIC_ERROR_FILE": str(word),
    }
    process = subprocess.Popen(
        [sys.executable, WORKER, str(tmp_path), deed],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    finish(process).assert_one_line(code, "fastalex-train: rank 0: ")
    message = ProcessFailure(0, process.pid, code, str(word)).message
    assert isinstance(message, dict)
    assert message["errorCode"] == code
    assert "Traceback" in message["extraInfo"]["py_callstack"]
